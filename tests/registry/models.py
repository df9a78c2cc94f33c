"""Ready networks, as small as they come; `mlp` is among the networks."""

import numpy as np

import fdl
from registry.cases import LayerCase

LAYERS = {
    "lenet": LayerCase(lambda: fdl.lenet(3), (2, 4, 4, 1)),
    "resnet": LayerCase(lambda: fdl.resnet(3, depth=8, width=2), (3, 5, 4, 2)),
    "autoencoder": LayerCase(lambda: fdl.autoencoder((3, 2), [4], 2), (3, 3, 2)),
    "lstm_classifier": LayerCase(
        lambda: fdl.lstm_classifier(255, 3, 2, dropout_rate=0.3), (2, 3), np.int32, random=True
    ),
    "encoder": LayerCase(
        lambda: fdl.encoder(255, 5, layers=1, heads=2, features=4), (2, 4), np.int32
    ),
    "gpt": LayerCase(
        lambda: fdl.gpt(255, 5, layers=1, heads=2, features=4, dropout_rate=0.2),
        (2, 4),
        np.int32,
        random=True,
    ),
    "vit": LayerCase(lambda: fdl.vit(3, (4, 6), 2, layers=1, heads=2, features=4), (2, 4, 6, 1)),
}
