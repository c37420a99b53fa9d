# Sourced by tests/run and the demos: makes sure that Debian's packages are there.

# Prints the packages of the given groups (debian-packages.txt) that are not installed.
missing_packages() {
  local root=$1 group package
  shift
  for group in "$@"; do
    while read -r package; do
      [ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null)" = installed ] ||
        printf '%s\n' "$package"
    done < <(awk -v group="$group" '$1 == group { print $2 }' "$root/debian-packages.txt")
  done
}

# apt-get, patient with a mirror or a lock that is busy for a moment.
apt_patiently() {
  local attempt
  for attempt in 1 2 3; do
    if DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 \
      -o DPkg::Lock::Timeout=120 -o Acquire::Retries=3 "$@" >&2; then
      return 0
    fi
    echo "apt-get $1: attempt $attempt failed" >&2
  done
  return 1
}

# Installs what is missing when root; names it and fails when not.
need_packages() {
  local root=$1 missing
  command -v dpkg-query >/dev/null || return 0 # Not Debian: the build will name what it misses.
  mapfile -t missing < <(missing_packages "$@")
  [ "${#missing[@]}" -gt 0 ] || return 0
  if [ "$(id -u)" -ne 0 ]; then
    {
      echo "These packages are missing: ${missing[*]}"
      echo "Install them as root:       apt-get install ${missing[*]}"
    } >&2
    return 1
  fi
  echo "installing: ${missing[*]}" >&2
  apt_patiently update && apt_patiently install -y --no-install-recommends "${missing[@]}"
}
