#!/usr/bin/env bash
# Sets up .venv (once), checks the style, and runs all tests. Arguments go to pytest: ./run_tests.sh tests/models
set -euo pipefail
cd "$(dirname "$0")"
. .ci/setup.sh
setup_venv
ruff check .
ruff format --check .
exec python -m pytest "$@"
