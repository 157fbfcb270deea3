#!/bin/sh
# Fetches the packages in a manifest (data/*.yaml): those with a version, name@1.2.3, with npm, the others are Debian's, with
# apt-get download and dpkg -x. Packages that are already in FOLDER are not fetched again.
#
#   sh tools/fetch_fonts.sh [FOLDER [MANIFEST]]      (default: build/fonts data/hands.yaml)
#
# Writes node_modules/, deb/<package>/, and versions.txt with a line "package version" for each package.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
packages=$(sed -n 's/^ *package: *"\{0,1\}\([^" ]*\)"\{0,1\} *$/\1/p' "${2:-$root/data/hands.yaml}" | sort -u)
mkdir -p "${1:-$root/build/fonts}"
cd "${1:-$root/build/fonts}"

missing=
for package in $packages; do
    case $package in
        *@*) grep -q "\"version\": *\"${package##*@}\"" "node_modules/${package%@*}/package.json" 2>/dev/null ||
                missing="$missing $package" ;;
    esac
done
if [ -n "$missing" ]; then
    command -v npm >/dev/null || { echo "error: npm is needed to fetch$missing; install it (Debian: npm)" >&2; exit 1; }
    # name all packages, because npm removes the others
    npm install --prefix . --no-save --no-package-lock --ignore-scripts --no-audit --no-fund --loglevel=error \
        $(printf '%s\n' $packages | grep '.@')
fi

for package in $packages; do
    case $package in *@*) continue ;; esac
    [ -d "deb/$package" ] && continue
    command -v apt-get >/dev/null || { echo "error: apt-get is needed to fetch $package" >&2; exit 1; }
    rm -rf deb/.fetching
    mkdir -p deb/.fetching
    (cd deb/.fetching && apt-get download -q -o APT::Sandbox::User=root "$package") || {
        echo "error: apt-get could not fetch $package; try \`apt-get update\` (as root) first" >&2; exit 1; }
    dpkg-deb -f deb/.fetching/*.deb Version > deb/.fetching/version
    dpkg -x deb/.fetching/*.deb deb/.fetching
    rm deb/.fetching/*.deb
    mv deb/.fetching "deb/$package"
done

for package in $packages; do
    case $package in
        *@*) echo "${package%@*} ${package##*@}" ;;
        *) echo "$package $(cat "deb/$package/version")" ;;
    esac
done > versions.txt
echo "$(printf '%s\n' $packages | wc -l) packages in $(pwd)"
