"""What a layer is, and how layers are joined into a network."""

from fdl.public_names import public as _public

from fdl.core.layer import Layer as Layer
from fdl.core.layer import function as function
from fdl.core.layer import stateless as stateless
from fdl.core.layer import subkey as subkey
from fdl.core.networks import chain as chain
from fdl.core.networks import network as network
from fdl.core.combinators import residual as residual
from fdl.core.combinators import parallel as parallel
from fdl.core.repetition import repeat as repeat
from fdl.core.combinators import remat as remat
from fdl.core.combinators import frozen as frozen
from fdl.core.combinators import batch_apply as batch_apply
from fdl.core.precision import compute_in as compute_in
from fdl.core.compilation_cache import use_compilation_cache as use_compilation_cache
from fdl.core.decoding import decode as decode
from fdl.core.decoding import start_decoding as start_decoding

__all__ = _public()
