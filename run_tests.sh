#!/usr/bin/env bash
# Sets up .venv (once), checks the style, and runs all tests. Arguments go to pytest: ./run_tests.sh tests/models
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # sh run_tests.sh
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")"
. .ci/setup.sh
setup_venv
ruff check .
ruff format --check .
unset PYTHONDONTWRITEBYTECODE # or each of the processes that tests start compiles all modules anew
# a file is one process's: what its tests share is made once
exec python -m pytest -n auto --dist loadfile --no-loadscope-reorder "$@"
