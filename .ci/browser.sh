# Sourced by .ci/run: installs what the tests of pages need, once. Without a network it fails, and nothing is lost.

BROWSER_LIMIT_S=180 # seconds a step may take

setup_browser() {
    local root
    root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
    if ! command -v chromium >/dev/null; then
        [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 1
        timeout "$BROWSER_LIMIT_S" apt-get -qq update >/dev/null 2>&1 || return 1
        DEBIAN_FRONTEND=noninteractive timeout "$BROWSER_LIMIT_S" \
            apt-get -qq install -y --no-install-recommends chromium >/dev/null 2>&1 || return 1
    fi
    . "$root/.ci/setup.sh"
    setup_venv || return 1
    "$root/.venv/bin/python" -c 'import playwright' 2>/dev/null ||
        timeout "$BROWSER_LIMIT_S" "$root/.venv/bin/python" -m pip install --quiet --disable-pip-version-check \
            -r "$root/requirements-browser.txt" >/dev/null 2>&1
}
