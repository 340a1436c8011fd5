"""Architectures of torchvision, timm and transformers, with what must be reachable of each.

The shares are the multiply-adds of the smallest network, with channels in multiples of eight, of
those of the original.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

SEED = 0


def library(name: str) -> Any:
    """Returns a library, or skips the test that wants it.

    ``torchvision`` registers operators at import that its C++ library defines; where that library
    does not load beside this build of PyTorch, the two that are missing are defined here, so that
    its networks, which are Python, can be had.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        pytest.skip(f"{name} is not installed ({error})")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    for operator in ("nms", "qnms"):
        torch.library.define(
            f"torchvision::{operator}",
            "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        )
    torch.library.impl("torchvision::nms", "CPU", _nms)
    importlib.import_module("torchvision").extension._has_ops = lambda: True
    return importlib.import_module(name)


def _nms(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Returns the boxes that overlap with no better one, the best first."""
    order, kept = scores.argsort(descending=True, stable=True), []
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    while len(order):
        best = order[0]
        kept.append(best)
        low = torch.maximum(boxes[best, :2], boxes[order, :2])
        high = torch.minimum(boxes[best, 2:], boxes[order, 2:])
        shared = (high - low).clamp(min=0).prod(1)
        order = order[shared / (areas[best] + areas[order] - shared) <= threshold]
    return torch.stack(kept) if kept else torch.zeros(0, dtype=torch.int64)


@dataclass(frozen=True)
class Architecture:
    """One network of a library.

    Args:
        reachable: Share of its multiply-adds.
        make: Returns the network.
        example: What it is called with, one sample.
        part: What is cut, if not the whole.
        roles: Sizes of the groups of each role, in network order, of a transformer.
    """

    reachable: float
    make: Callable[[], nn.Module]
    example: Callable[[], Any]
    part: str | None = None
    roles: Mapping[str, tuple[int, ...]] | None = None


def _vision(
    reachable: float, name: str, side: int = 64, *, part: str | None = None, **more: Any
) -> Architecture:
    def make() -> nn.Module:
        library("torchvision")
        package, _, factory = f"torchvision.models.{name}".rpartition(".")
        given = {"weights": None, **more}
        if package.endswith(("segmentation", "detection")):
            given["weights_backbone"] = None
        net: nn.Module = getattr(importlib.import_module(package), factory)(**given)
        return net

    listed = ".detection" in f".{name}"
    example = (lambda: ([torch.rand(3, side, side)],)) if listed else partial(_image, side)
    return Architecture(reachable, make, example, part)


def _timm(reachable: float, name: str, side: int = 64, **more: Any) -> Architecture:
    return Architecture(
        reachable, lambda: library("timm").create_model(name, **more), partial(_image, side)
    )


def _hugging(
    reachable: float, name: str, example: Callable[[], Any], config: str,
    roles: Mapping[str, tuple[int, ...]] | None = None, **settings: Any,
) -> Architecture:  # fmt: skip
    def make() -> nn.Module:
        if importlib.util.find_spec("torchvision"):
            library("torchvision")  # which transformers imports where it is installed
        transformers = library("transformers")
        net: nn.Module = getattr(transformers, name)(getattr(transformers, config)(**settings))
        return net

    return Architecture(reachable, make, example, roles=roles)


def _roles(
    heads: int | tuple[int, ...], mlp: int | tuple[int, ...] = 128, *embedding: int
) -> dict[str, tuple[int, ...]]:
    """Sizes of a transformer's groups; one number stands for two layers alike."""
    sizes = {"heads": heads, "mlp": mlp, "embedding": embedding}
    return {role: (x,) * 2 if isinstance(x, int) else x for role, x in sizes.items()}


def _maxvit() -> nn.Module:
    """As ``maxvit_t``, for images of 64 x 64 pixels in windows of 2 x 2."""
    library("torchvision")
    module = importlib.import_module("torchvision.models.maxvit")
    net: nn.Module = module.MaxVit(
        (64, 64), 64, 2, [64, 128, 256, 512], [2, 2, 5, 2], head_dim=32, stochastic_depth_prob=0.2
    )
    return net


def _vit() -> nn.Module:
    library("torchvision")
    module = importlib.import_module("torchvision.models.vision_transformer")
    net: nn.Module = module.VisionTransformer(64, 16, 4, 3, 192, 768)
    return net


class _Maps(nn.Module):
    """What a detector computes before boxes are sorted and selected."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = detector.backbone, detector.head

    def forward(self, images: Tensor) -> Any:
        return self.head(list(self.backbone(images).values()))


def _maps(reachable: float, detector: Architecture, side: int) -> Architecture:
    return Architecture(reachable, lambda: _Maps(detector.make()), partial(_image, side))


def _image(side: int) -> Tensor:
    return torch.randn(1, 3, side, side)


def _pixels(side: int) -> dict[str, Tensor]:
    return {"pixel_values": _image(side)}


def _tokens(*names: str, length: int = 20) -> dict[str, Tensor]:
    found = {name: torch.randint(5, 90, (1, length)) for name in names if name.endswith("ids")}
    masks = {n: torch.ones(1, length, dtype=torch.int64) for n in names if n.endswith("mask")}
    return found | masks


_BODY = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128,
}  # fmt: skip
_TEXTS = _BODY | {"vocab_size": 99, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_GROUPED = _TEXTS | {"num_key_value_heads": 2}
_TEXT = partial(_tokens, "input_ids", "attention_mask")
_BOTH = partial(_tokens, "input_ids", "decoder_input_ids")


def _captioned() -> dict[str, Tensor]:
    """An image and a text."""
    return _pixels(32) | _TEXT()


def _spoken() -> dict[str, Tensor]:
    """A sound and a text."""
    return {"input_features": torch.randn(1, 8, 60)} | _tokens("decoder_input_ids", length=7)


ARCHITECTURES: dict[str, Architecture] = {
    "tv.resnet18": _vision(0.013, "resnet18"),
    "tv.resnet50": _vision(0.006, "resnet50"),
    "tv.wide_resnet50_2": _vision(0.002, "wide_resnet50_2"),
    "tv.resnext50_32x4d": _vision(0.006, "resnext50_32x4d"),
    "tv.vgg16_bn": _vision(0.004, "vgg16_bn"),
    "tv.alexnet": _vision(0.008, "alexnet"),
    "tv.densenet121": _vision(0.017, "densenet121", num_classes=10),
    "tv.googlenet": _vision(0.015, "googlenet", 96, init_weights=False),
    "tv.inception_v3": _vision(0.009, "inception_v3", 299, init_weights=False),
    "tv.squeezenet1_1": _vision(0.036, "squeezenet1_1"),
    "tv.shufflenet_v2_x1_0": _vision(0.039, "shufflenet_v2_x1_0"),
    "tv.mobilenet_v3_small": _vision(0.052, "mobilenet_v3_small"),
    "tv.mnasnet0_5": _vision(0.070, "mnasnet0_5"),
    "tv.efficientnet_b0": _vision(0.018, "efficientnet_b0"),
    "tv.efficientnet_v2_s": _vision(0.010, "efficientnet_v2_s"),
    "tv.regnet_y_400mf": _vision(0.125, "regnet_y_400mf"),
    "tv.convnext_tiny": _vision(0.002, "convnext_tiny"),
    "tv.swin_t": _vision(0.009, "swin_t"),
    "tv.maxvit_t": Architecture(0.007, _maxvit, partial(_image, 64)),
    "tv.vit": Architecture(
        0.012, _vit, partial(_image, 64), roles=_roles((3,) * 4, (768,) * 4, 192)
    ),
    "tv.lraspp_mobilenet_v3_large": _vision(0.020, "segmentation.lraspp_mobilenet_v3_large"),
    "tv.deeplabv3_resnet50": _vision(0.001, "segmentation.deeplabv3_resnet50"),
    "tv.ssdlite320": _vision(
        0.109, "detection.ssdlite320_mobilenet_v3_large", 320, part="backbone", num_classes=5
    ),
    "tv.fcos_resnet50_fpn": _vision(
        0.509, "detection.fcos_resnet50_fpn", 128, part="backbone", num_classes=5, min_size=128
    ),
    "tv.fcos_resnet50_fpn.maps": _maps(
        0.003, _vision(1.0, "detection.fcos_resnet50_fpn", num_classes=5), 128
    ),
    "timm.ghostnet_100": _timm(0.105, "ghostnet_100"),
    "timm.mobilenetv4_conv_small": _timm(0.027, "mobilenetv4_conv_small"),
    "timm.repvgg_a0": _timm(0.007, "repvgg_a0"),
    "timm.ese_vovnet19b_dw": _timm(0.006, "ese_vovnet19b_dw"),
    "timm.dla34": _timm(0.035, "dla34"),
    "timm.resnet26d": _timm(0.009, "resnet26d"),
    "timm.xception41": _timm(0.003, "xception41"),
    "timm.fastvit_t8": _timm(0.028, "fastvit_t8"),
    "timm.levit_128s": _timm(0.111, "levit_128s", 224),
    "timm.efficientvit_b0": _timm(0.122, "efficientvit_b0"),
    "timm.edgenext_xx_small": _timm(0.065, "edgenext_xx_small"),
    "timm.poolformer_s12": _timm(0.003, "poolformer_s12"),
    "timm.resnest14d": _timm(0.031, "resnest14d"),
    "timm.mixer_s32_224": _timm(0.083, "mixer_s32_224", 224, num_classes=10),
    "timm.convnextv2_atto": _timm(0.011, "convnextv2_atto"),
    "timm.nf_resnet26": _timm(0.009, "nf_resnet26"),
    "timm.eca_nfnet_l0": _timm(0.125, "eca_nfnet_l0"),
    "timm.deit_tiny_patch16_224": _timm(0.053, "deit_tiny_patch16_224", 224),
    "timm.mobilevit_xxs": _timm(0.052, "mobilevit_xxs"),
    "timm.hrnet_w18_small": _timm(0.028, "hrnet_w18_small"),
    "hf.ResNet": _hugging(
        0.052, "ResNetForImageClassification", partial(_pixels, 64), "ResNetConfig",
        embedding_size=64, hidden_sizes=[128, 256], depths=[2, 2],
    ),
    "hf.ConvNeXt": _hugging(
        0.043, "ConvNextForImageClassification", partial(_pixels, 64), "ConvNextConfig",
        hidden_sizes=[32, 64], depths=[2, 2], num_stages=2,
    ),
    "hf.RegNet": _hugging(
        0.080, "RegNetForImageClassification", partial(_pixels, 64), "RegNetConfig",
        embedding_size=16, hidden_sizes=[32, 64], depths=[2, 2], groups_width=16,
    ),
    "hf.MobileNetV2": _hugging(
        0.024, "MobileNetV2ForImageClassification", partial(_pixels, 64), "MobileNetV2Config",
    ),
    "hf.ViT": _hugging(
        0.057, "ViTForImageClassification", partial(_pixels, 64), "ViTConfig", image_size=64,
        hidden_size=64, num_hidden_layers=4, num_attention_heads=4, intermediate_size=128,
        roles=_roles((4,) * 4, (128,) * 4, 64),
    ),
    "hf.DeiT": _hugging(
        0.069, "DeiTForImageClassification", partial(_pixels, 64), "DeiTConfig",
        _roles(4, 128, 64), **_BODY, image_size=64,
    ),
    "hf.Swin": _hugging(
        0.060, "SwinForImageClassification", partial(_pixels, 64), "SwinConfig", image_size=64,
        embed_dim=32, depths=[2, 2], num_heads=[2, 4], window_size=4,
        roles=_roles((2, 2, 4, 4), (128, 128, 256, 256), 32, 64),
    ),
    "hf.SegFormer": _hugging(
        0.009, "SegformerForSemanticSegmentation", partial(_pixels, 64), "SegformerConfig",
        depths=[1, 1, 1, 1],
    ),
    "hf.CLIP": _hugging(
        0.223, "CLIPModel", _captioned, "CLIPConfig", _roles((4,) * 4, (128,) * 4),
        text_config=_TEXTS | {"max_position_embeddings": 20, "eos_token_id": 98},
        vision_config=_BODY | {"image_size": 32, "patch_size": 8}, projection_dim=32,
    ),
    "hf.BERT": _hugging(
        0.036, "BertForSequenceClassification", _TEXT, "BertConfig", _roles(4, 128, 64), **_TEXTS,
    ),
    "hf.RoBERTa": _hugging(
        0.036, "RobertaForSequenceClassification", _TEXT, "RobertaConfig", _roles(4, 128, 64),
        **_TEXTS, max_position_embeddings=40,
    ),
    "hf.DistilBERT": _hugging(
        0.036, "DistilBertForTokenClassification", _TEXT, "DistilBertConfig", _roles(4, 128, 64),
        vocab_size=99, dim=64, n_layers=2, n_heads=4, hidden_dim=128,
    ),
    "hf.GPT-2": _hugging(
        0.031, "GPT2LMHeadModel", _TEXT, "GPT2Config", _roles(4, 256, 64), vocab_size=99,
        n_embd=64, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2,
    ),
    "hf.GPT-NeoX": _hugging(
        0.044, "GPTNeoXForCausalLM", _TEXT, "GPTNeoXConfig", _roles(4, 128, 64), **_TEXTS,
    ),
    "hf.Llama": _hugging(
        0.062, "LlamaForCausalLM", _TEXT, "LlamaConfig", _roles(2, 128, 64), **_GROUPED,
    ),
    "hf.Llama.eager": _hugging(
        0.062, "LlamaForCausalLM", _TEXT, "LlamaConfig", _roles(2, 128, 64), **_GROUPED,
        attn_implementation="eager",
    ),
    "hf.Mistral": _hugging(
        0.062, "MistralForCausalLM", _TEXT, "MistralConfig", _roles(2, 128, 64), **_GROUPED,
        sliding_window=8,
    ),
    "hf.Qwen2": _hugging(
        0.062, "Qwen2ForCausalLM", _TEXT, "Qwen2Config", _roles(2, 128, 64), **_GROUPED,
    ),
    "hf.Qwen3": _hugging(
        0.062, "Qwen3ForCausalLM", _TEXT, "Qwen3Config", _roles(2, 128, 64), **_GROUPED,
        head_dim=16,
    ),
    "hf.Gemma": _hugging(
        0.062, "GemmaForCausalLM", _TEXT, "GemmaConfig", _roles(2, 128, 64), **_GROUPED,
        head_dim=16,
    ),
    "hf.Gemma2": _hugging(
        0.062, "Gemma2ForCausalLM", _TEXT, "Gemma2Config", _roles(2, 128, 64), **_GROUPED,
        head_dim=16, sliding_window=8,
    ),
    "hf.Gemma3": _hugging(
        0.062, "Gemma3ForCausalLM", _TEXT, "Gemma3TextConfig", _roles(2, 128, 64), **_GROUPED,
        head_dim=16, sliding_window=8, layer_types=["sliding_attention", "full_attention"],
    ),
    "hf.Phi": _hugging(
        0.044, "PhiForCausalLM", _TEXT, "PhiConfig", _roles(4, 128, 64), **_TEXTS,
    ),
    "hf.Phi3": _hugging(
        0.060, "Phi3ForCausalLM", _TEXT, "Phi3Config", _roles(2, 128, 64), **_GROUPED,
    ),
    "hf.StableLM": _hugging(
        0.062, "StableLmForCausalLM", _TEXT, "StableLmConfig", _roles(2, 128, 64), **_GROUPED,
    ),
    "hf.GPT-J": _hugging(
        0.031, "GPTJForCausalLM", _TEXT, "GPTJConfig", _roles(4, 256, 64), vocab_size=99,
        n_embd=64, n_layer=2, n_head=4, rotary_dim=8,
    ),
    "hf.Falcon": _hugging(
        0.051, "FalconForCausalLM", _TEXT, "FalconConfig", _roles(2, 256, 64), **_TEXTS,
        num_kv_heads=2, new_decoder_architecture=True,
    ),
    "hf.Falcon.one": _hugging(
        0.034, "FalconForCausalLM", _TEXT, "FalconConfig", _roles(4, 256, 64), **_TEXTS,
    ),
    "hf.GPTBigCode": _hugging(
        0.052, "GPTBigCodeForCausalLM", _TEXT, "GPTBigCodeConfig", _roles(4, 128, 64),
        vocab_size=99, n_embd=64, n_layer=2, n_head=4, n_inner=128,
    ),
    "hf.Gemma.one": _hugging(
        0.043, "GemmaForCausalLM", _TEXT, "GemmaConfig", _roles(4, 128, 64),
        **_TEXTS | {"num_key_value_heads": 1}, head_dim=16,
    ),
    "hf.MPNet": _hugging(
        0.036, "MPNetForSequenceClassification", _TEXT, "MPNetConfig", _roles((4,), 128, 64),
        **_TEXTS, max_position_embeddings=64,
    ),
    "hf.DeBERTa": _hugging(
        0.078, "DebertaV2ForSequenceClassification", _TEXT, "DebertaV2Config", _roles(4, 128, 64),
        **_TEXTS, max_position_embeddings=64, relative_attention=True, position_buckets=8,
        pos_att_type=["p2c", "c2p"],
    ),
    "hf.T5": _hugging(
        0.209, "T5ForConditionalGeneration", _BOTH, "T5Config", _roles((4,) * 3, (128,) * 4),
        vocab_size=99, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4,
    ),
    "hf.Whisper": _hugging(
        0.151, "WhisperForConditionalGeneration", _spoken, "WhisperConfig",
        _roles((4,) * 6, (128,) * 4, 64), vocab_size=99, num_mel_bins=8, d_model=64,
        encoder_layers=2, decoder_layers=2, encoder_ffn_dim=128, decoder_ffn_dim=128,
        encoder_attention_heads=4, decoder_attention_heads=4, max_source_positions=30,
        max_target_positions=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=1,
    ),
    "hf.BART": _hugging(
        0.209, "BartForConditionalGeneration", _BOTH, "BartConfig", vocab_size=99, d_model=64,
        encoder_layers=2, decoder_layers=2, encoder_ffn_dim=128, decoder_ffn_dim=128,
        encoder_attention_heads=4, decoder_attention_heads=4, max_position_embeddings=64,
        roles=_roles((4,) * 6, (128,) * 4),
    ),
    "torch.Transformer": Architecture(
        0.177, lambda: nn.Transformer(64, 4, 2, 2, 128, batch_first=True),
        lambda: (torch.randn(1, 9, 64), torch.randn(1, 5, 64)),
        roles=_roles((4,) * 6, (128,) * 4),
    ),
}  # fmt: skip
"""Name -> architecture."""


def build(name: str) -> tuple[nn.Module, Any, Architecture]:
    """Returns a network in evaluation mode with random weights, and its inputs."""
    entry = ARCHITECTURES[name]
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        net = entry.make().eval()
        return net, entry.example(), entry
