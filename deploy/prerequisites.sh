# What the scripts of this repository share: finding what a machine lacks, and installing it. To be sourced.
# shellcheck shell=bash

# A fresh rustup has not yet changed the PATH of the shell that called it.
PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"

fail() {
  printf '%s: %s\n' "${0##*/}" "$1" >&2
  exit 1
}

# need PACKAGE COMMAND...: notes the Debian package for installation if one of the commands isn't there.
packages_missing=()
need() {
  local package=$1 command
  shift
  for command in "$@"; do
    if ! command -v "$command" >/dev/null; then
      packages_missing+=("$package")
      return
    fi
  done
}

# What every build here needs; glommio's build script calls git. Where Rust is yet to come, curl is what brings it.
need_build_tools() {
  need build-essential cc c++ make perl
  need git git
  [[ -e /etc/ssl/certs/ca-certificates.crt ]] || packages_missing+=(ca-certificates)
  command -v cargo >/dev/null || need curl curl
}

# Installs what was noted, and nothing where nothing is missing.
install_missing() {
  ((${#packages_missing[@]} > 0)) || return 0
  local as_root=()
  if ((EUID != 0)); then
    command -v sudo >/dev/null || fail "not root, and no sudo; as root: apt-get install ${packages_missing[*]}"
    as_root=(sudo)
  fi
  command -v apt-get >/dev/null || fail "no apt-get here; install what Debian calls: ${packages_missing[*]}"
  echo "installing ${packages_missing[*]}"
  local log
  log=$(mktemp)
  if ! { "${as_root[@]}" apt-get update -q &&
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
      apt-get install -q -y --no-install-recommends "${packages_missing[@]}"; } </dev/null >"$log" 2>&1; then
    cat "$log" >&2
    rm -f "$log"
    fail "could not install ${packages_missing[*]} (apt-get's words are above)"
  fi
  rm -f "$log"
  packages_missing=()
}

# Rust is the user's own choice of installation: it is asked for, never installed. $1 is the repository.
require_rust() {
  local wanted found
  wanted=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' "$1/Cargo.toml")
  command -v cargo >/dev/null ||
    fail "no Rust here. It comes with: curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y"
  found=$(cd "$1" && cargo --version | cut -d ' ' -f 2)
  [[ $(printf '%s\n' "$wanted" "$found" | sort -V | head -n 1) == "$wanted" ]] ||
    fail "Rust $found is too old, $wanted is needed. It comes with: rustup update stable"
}
