# The public names, one a line: read by type checkers, and when a name is first used.
from . import agents as agents
from . import learners as learners
from .data.splits import load_data as load_data
from .models.registry import make_model as make_model
from .runs.networks import load_compressed as load_compressed

__version__: str
