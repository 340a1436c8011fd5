# The public names, one a line: read by type checkers, and when a name is first used.
from . import agents as agents
from . import learners as learners
from .data.splits import load_data as load_data
from .front.compress import compress as compress
from .front.result import Result as Result
from .learners.export.integers.onnx_quantized import export_quantized as export_quantized
from .learners.export.integers.onnx_quantized import post_training_int8 as post_training_int8
from .learners.export.onnx_file import export_onnx as export_onnx
from .learners.export.pretrained.folder import save_pretrained as save_pretrained
from .learners.export.pretrained.loading import load as load
from .models.registry import make_model as make_model
from .runs.networks import load_compressed as load_compressed
from .stages.progressive import progressive_compression as progressive_compression

__version__: str
