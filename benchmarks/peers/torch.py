"""PyTorch, as its tutorials show: modules and a loop of eager steps, or `torch.compile`.

As the documentation recommends, images are tried in both memory formats, and the large embedding of
`bag` has sparse gradients with SGD. All other optimizers are fused, which the documentation calls
the fastest form.
"""

import functools

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.peers import Block, Lacks
from benchmarks.work import batches

TITLE = "torch"
NEEDS = ("torch",)
FORMS = ("eager", "channels last", "compiled")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SAMPLES = 32


def training(work, x, y, form="eager"):
    torch.manual_seed(0)
    if form == "channels last" and (not work.has_channels or x.ndim != 4):
        raise Lacks("it is a memory format of images")
    return _Loop(work, x, y, form)


class _Loop:
    def __init__(self, work, x, y, form):
        self.work, self.last = work, form == "channels last"
        more = {"sparse": _is_sparse(work)} if work.network == "bag" else {}
        model = NETWORKS[work.network](**work.sizes, **more).to(DEVICE)
        self.model = model.to(memory_format=torch.channels_last) if self.last else model
        self.score = torch.compile(self.model) if form == "compiled" else self.model
        self.optimizer = _optimizer(work, model.parameters())
        self.x, self.y = self._input(x), torch.from_numpy(y).to(DEVICE)
        self.y = self.y.long() if work.loss == "classes" else self.y
        self.rows = iter(())

    def _input(self, x):
        x = torch.from_numpy(x).to(DEVICE)
        if not self.work.has_channels or self.last:
            return x  # channels last: the axes are permuted in each batch, without a copy
        return x.movedim(-1, 1).contiguous()

    def _next(self):
        """A batch: the next slice of a permutation of the examples."""
        rows = next(self.rows, None)
        if rows is None:
            order = torch.randperm(len(self.x), device=DEVICE)
            whole = len(order) - len(order) % self.work.batch
            self.rows = iter(order[:whole].split(self.work.batch))
            rows = next(self.rows)
        return self.x[rows], self.y[rows]

    def _output(self, x):
        x = x.movedim(-1, 1) if self.last else x
        if self.work.dtype == "float32":
            return self.score(x)
        with torch.autocast(DEVICE, torch.bfloat16):
            return self.score(x)

    def steps(self, count):
        losses, every = [], -(-count // SAMPLES)
        for number in range(count):
            x, y = self._next()
            output = self._output(x).float()
            if self.work.loss == "squares":
                loss = F.mse_loss(output, y)
            else:
                loss = F.cross_entropy(output.flatten(0, -2), y.flatten())
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            if number % every == 0:
                losses.append(loss.detach())
        mean = torch.stack(losses).mean().item()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        return Block(mean)

    @torch.no_grad()
    def accuracy(self, x, y):
        right = self._output(self._input(x)).argmax(-1) == torch.from_numpy(y).to(DEVICE)
        return right.float().mean().item()


def _optimizer(work, params):
    fused = {} if _is_sparse(work) else {"fused": True}  # no fused form takes sparse gradients
    return {
        "sgd": lambda: torch.optim.SGD(params, work.rate, **fused),
        "momentum": lambda: torch.optim.SGD(params, work.rate, momentum=0.9, **fused),
        "adam": lambda: torch.optim.Adam(params, work.rate, **fused),
        "adamw": lambda: torch.optim.AdamW(params, work.rate, weight_decay=0.01, **fused),
    }[work.optimizer]()


def _is_sparse(work):
    """True for `bag` with SGD. SparseAdam skips the rows without a gradient, so it is not Adam."""
    return work.network == "bag" and work.optimizer == "sgd"


def sweep(work, x, y, form="eager"):
    """An ensemble by torch.func, with SGD's update written out; members see the same batches."""
    if form != "eager":
        raise Lacks("the tutorial of ensembles is eager")
    torch.manual_seed(0)
    return _Ensemble(work, x, y)


class _Ensemble:
    def __init__(self, work, x, y):
        members = [NETWORKS[work.network](**work.sizes).to(DEVICE) for _ in range(work.members)]
        self.params, _ = torch.func.stack_module_state(members)
        self.params = {name: p.detach() for name, p in self.params.items()}
        self.trace = {name: torch.zeros_like(p) for name, p in self.params.items()}
        self.rates = torch.from_numpy(work.rates).to(DEVICE)
        self.batches = batches(x, y, work.batch)
        base = members[0]

        def loss(params, x, y):
            return F.cross_entropy(torch.func.functional_call(base, params, (x,)), y)

        both = torch.func.grad_and_value(loss)
        self.gradient = torch.func.vmap(both, in_dims=(0, None, None))

    def steps(self, count):
        losses, every = [], -(-count // SAMPLES)
        for number in range(count):
            x, y = next(self.batches)
            x, y = torch.from_numpy(x).to(DEVICE), torch.from_numpy(y).long().to(DEVICE)
            gradient, loss = self.gradient(self.params, x, y)
            for name, p in self.params.items():
                trace = self.trace[name].mul_(0.9).add_(gradient[name])
                p.sub_(self.rates.view(-1, *(1,) * (p.ndim - 1)) * trace)
            if number % every == 0:
                losses.append(loss.mean())
        return Block(torch.stack(losses).mean().item())


# The networks.


def perceptron(inputs, hidden, outputs):
    layers = []
    for width in hidden:
        layers += [nn.Linear(inputs, width), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, outputs))


def autoencoder(inputs, hidden, code):
    return nn.Sequential(perceptron(inputs, hidden, code), perceptron(code, hidden[::-1], inputs))


def lenet(image):
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding="same"),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding="same"),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * (image // 2) ** 2, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


def conv1d(channels):
    return nn.Sequential(
        nn.Conv1d(channels, 32, 5, padding="same"),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(32, 64, 5, padding="same"),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(64, 128, 3, padding="same"),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


class Bag(nn.Module):
    def __init__(self, vocabulary, features, sparse):
        super().__init__()
        self.embed = nn.EmbeddingBag(vocabulary, features, mode="mean", sparse=sparse)
        nn.init.normal_(self.embed.weight, std=features**-0.5)
        self.head = nn.Linear(features, 10)

    def forward(self, ids):
        return self.head(self.embed(ids))


class Residual(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv_0 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm_0 = nn.BatchNorm2d(outputs)
        self.conv_1 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm_1 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity()
        if stride > 1:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = F.relu(self.norm_0(self.conv_0(x)))
        return F.relu(self.norm_1(self.conv_1(y)) + self.shortcut(x))


def resnet(blocks, width):
    conv = nn.Conv2d(3, width, 3, padding=1, bias=False)
    layers, channels = [conv, nn.BatchNorm2d(width), nn.ReLU()], width
    for stage in range(3):
        for number in range(blocks):
            features = width * 2**stage
            layers.append(Residual(channels, features, 2 if stage and not number else 1))
            channels = features
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, *pool, nn.Linear(channels, 10))


class TransformerBlock(nn.Module):
    def __init__(self, heads, features, causal):
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm_0, self.norm_1 = nn.LayerNorm(features), nn.LayerNorm(features)
        self.qkv, self.out = nn.Linear(features, 3 * features), nn.Linear(features, features)
        self.up, self.down = nn.Linear(features, 4 * features), nn.Linear(4 * features, features)

    def forward(self, x):
        b, t, d = x.shape
        qkv = self.qkv(self.norm_0(x)).view(b, t, 3, self.heads, d // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.out(y.transpose(1, 2).reshape(b, t, d))
        return x + self.down(F.gelu(self.up(self.norm_1(x)), approximate="tanh"))


class GPT(nn.Module):
    def __init__(self, vocabulary, length, layers, heads, features):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, features)
        nn.init.normal_(self.embed.weight, std=features**-0.5)
        self.positions = nn.Parameter(torch.randn(length, features) * 0.02)
        blocks = [TransformerBlock(heads, features, True) for _ in range(layers)]
        head = nn.Linear(features, vocabulary, bias=False)
        self.rest = nn.Sequential(*blocks, nn.LayerNorm(features), head)

    def forward(self, ids):
        return self.rest(self.embed(ids) + self.positions)


class ViT(nn.Module):
    def __init__(self, image, patch, layers, heads, features):
        super().__init__()
        self.patch = nn.Conv2d(3, features, patch, patch)
        self.positions = nn.Parameter(torch.randn((image // patch) ** 2, features) * 0.02)
        blocks = [TransformerBlock(heads, features, False) for _ in range(layers)]
        self.rest, self.head = (
            nn.Sequential(*blocks, nn.LayerNorm(features)),
            nn.Linear(features, 10),
        )

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        return self.head(self.rest(x + self.positions).mean(1))


class Recurrent(nn.Module):
    def __init__(self, kind, inputs, features):
        super().__init__()
        self.layer = kind(inputs, features, batch_first=True)
        self.head = nn.Linear(features, 10)

    def forward(self, x):
        return self.head(self.layer(x)[0][:, -1])


NETWORKS = {
    "perceptron": perceptron,
    "lenet": lenet,
    "resnet": resnet,
    "gpt": GPT,
    "vit": ViT,
    "lstm": functools.partial(Recurrent, nn.LSTM),
    "gru": functools.partial(Recurrent, nn.GRU),
    "autoencoder": autoencoder,
    "conv1d": conv1d,
    "bag": Bag,
}
