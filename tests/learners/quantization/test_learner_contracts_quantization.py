"""Learners that quantize keep the contract of learners, in their main configurations."""

from __future__ import annotations

import pytest
from contracts.precision_contract import PrecisionContract
from contracts.quantized import measured_costs

from amc_compress.learners import CodebookQuantization, UniformQuantization
from amc_compress.learners.testing.networks import make_data
from amc_env import Budget


class QuantizationContract(PrecisionContract):
    """Bits are decided, channels are not."""

    budget = Budget(bytes=0.25, mean_bits=6 / 32)
    uncut_loss = 0.05
    unknown_key = "elsewhere:weight_bits"

    def measured(self, learner, network, original):
        return measured_costs(network, original, learner.storage.fixed_bytes)


class TestUniformQuantization(QuantizationContract):
    def make(self, model, example, calibration, validation, **options):
        return UniformQuantization(model, example, calibration, validation, **options)


@pytest.mark.slow
class TestUniformQuantizationOfEverything(QuantizationContract):
    """Weights and inputs of all layers are decided, 16 bits among the choices; scales split."""

    budget = Budget(bytes=(0.1, 0.5), bops=0.1)
    uncut_loss = 0.0

    def make(self, model, example, calibration, validation, **options):
        return UniformQuantization(
            model,
            example,
            calibration,
            validation,
            weight_bits=(2, 4, 8, 16),
            activation_bits=(4, 8, 16),
            first_last_bits=None,
            granularity="split",
            bucket_size=32,
            symmetric=False,
            **options,
        )


@pytest.mark.slow
class TestUniformQuantizationThatTrainsBriefly(QuantizationContract):
    """SGD steps before evaluation, scales trained with the weights."""

    proxy_is_compress = False
    uncut_loss = 0.1

    def make(self, model, example, calibration, validation, **options):
        return UniformQuantization(
            model,
            example,
            calibration,
            validation,
            learned_steps=True,
            finetune_steps=2,
            train=make_data(96, 1),
            **options,
        )


class TestCodebookQuantization(QuantizationContract):
    budget = Budget(mean_bits=6 / 32)

    def make(self, model, example, calibration, validation, **options):
        return CodebookQuantization(model, example, calibration, validation, **options)
