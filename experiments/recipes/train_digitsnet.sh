#!/bin/sh
# The weights that come with the package: 60 epochs on the digits' training images, about 15 s.
# Ends with: validation 0.9972 (epoch 60), test 0.9861
set -eu
cd "$(dirname "$0")/../.."
OMP_NUM_THREADS=1 exec "${PYTHON:-.venv/bin/python}" -m amc_compress.models.pretrain "$@"
