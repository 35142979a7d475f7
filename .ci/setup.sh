# Sourced by run_tile.sh and run_tests.sh: makes .venv beside this checkout, once, and activates it.
# Installs again only when a file of requirements changes.

# Of pip's lines, the names of what it fetches: the minutes are not silent.
show_packages() {
    local word name rest
    while read -r word name rest; do
        case $word in
            Collecting) printf '  %s\n' "$name" ;;
            Installing) echo "  installing them ..." ;;
        esac
    done
}

find_python() {
    local name
    for name in "${PYTHON:-}" python3.11 python3.12 python3.13 python3 python; do
        if [ -n "$name" ] && "$name" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
            echo "$name"
            return
        fi
    done
    echo "Python 3.11, 3.12 or 3.13 with venv is needed; set PYTHON=/path/to/python" >&2
    return 1
}

setup_venv() {
    local root python wanted
    root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
    wanted=("$root/requirements.txt" "$root/requirements-test.txt")
    if ! cat "${wanted[@]}" | cmp -s - "$root/.venv/installed.txt"; then
        python=$(find_python) || return 1
        echo "Setting up $root/.venv (once, some minutes) ..."
        "$python" -m venv "$root/.venv" || return 1
        (
            set -o pipefail
            "$root/.venv/bin/python" -m pip install --disable-pip-version-check "${wanted[@]/#/-r}" | show_packages
        ) || return 1
        # Servers without a display lack libGL; the headless build of OpenCV is the same without its windows.
        if ! "$root/.venv/bin/python" -c 'import cv2' 2>/dev/null; then
            "$root/.venv/bin/python" -m pip uninstall --quiet --yes opencv-python || return 1
            "$root/.venv/bin/python" -m pip install --quiet --no-deps \
                "$(sed -n 's/^opencv-python==/opencv-python-headless==/p' "$root/requirements.txt")" || return 1
        fi
        cat "${wanted[@]}" >"$root/.venv/installed.txt"
    fi
    . "$root/.venv/bin/activate"
}
