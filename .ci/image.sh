#!/usr/bin/env bash
# image.sh [ARCH...]: static programs (musl), OCI archives and bills of materials in target/image, for amd64 and arm64,
# without a container engine. C code is compiled by zig, which brings headers and linker for both; what mesh-proxy
# calls (nft, ip) comes from Debian's packages of the image's processor.
set -euo pipefail
cd "$(dirname "$0")/.."
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
tag=${TAG:-$version}
repository=${REPOSITORY:-selvage}
revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct 2>/dev/null || echo 0)
export SOURCE_DATE_EPOCH
build=${CARGO_TARGET_DIR:-target}
out=target/image
profile=${PROFILE:-release}
arches=("$@")
[ ${#arches[@]} -gt 0 ] || arches=(amd64 arm64)
mkdir -p "$out"
passed=0 failed=0
check() { # TEXT COMMAND...
  local text=$1; shift
  if "$@"; then passed=$((passed + 1)); echo "image: ok      $text"; else failed=$((failed + 1)); echo "image: FAILED  $text"; fi
}

is_static() { # FILE MACHINE
  readelf -h "$1" | grep -q "Machine:.*$2" && ! readelf -l "$1" | grep -q "program interpreter"
}
starts() { # FILE ARCH: on this processor, or on an emulated one
  if [ "$2" = "$(dpkg --print-architecture)" ]; then "$1" --version >/dev/null; else "qemu-${3,,}-static" "$1" --version >/dev/null; fi
}

zig=${XDG_CACHE_HOME:-$HOME/.cache}/selvage/zig
if [ ! -x "$zig/bin/cargo-zigbuild" ]; then
  echo "image: installing zig and cargo-zigbuild from PyPI (90 MB, once)"
  rm -rf "$zig.new"
  pip install --quiet --disable-pip-version-check --root-user-action=ignore --target "$zig.new" ziglang==0.17.1 cargo-zigbuild==0.24.0
  rm -rf "$zig" && mv "$zig.new" "$zig"
fi
export PYTHONPATH=$zig PATH=$zig/bin:$PATH

echo "image: building oci-image"
cargo build --locked -q -p mesh-testkit --bin oci-image

# DEBIAN_ARCH: a folder with nft, ip and their libraries for that processor; prints it. Which package each file is of
# goes to tools-ARCH.txt, for the bill of materials.
tools() {
  local arch=$1 root=$out/root-$1 list=$out/tools-$1.txt purl names
  if [ ! -s "$list" ]; then
    rm -rf "$root" "$out/deb-$arch" && mkdir -p "$root" "$out/deb-$arch"
    if [ "$arch" != "$(dpkg --print-architecture)" ] && ! dpkg --print-foreign-architectures | grep -qx "$arch"; then
      dpkg --add-architecture "$arch" && apt-get update -q >/dev/null
    fi
    names=$(apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces --no-enhances \
      "nftables:$arch" "iproute2:$arch" | sed -n 's/^\([a-z0-9][^ ]*\)$/\1/p' | sed "s/:.*//" | sort -u |
      grep -vxE 'debconf.*|cdebconf|perl.*|libc-bin|dpkg|tar|gcc-12-base|libgcc-s1|libcrypt1|adduser|passwd' || true)
    (cd "$out/deb-$arch" && for name in $names; do apt-get download -q "$name:$arch" >/dev/null 2>&1 || true; done)
    for deb in "$out/deb-$arch"/*.deb; do dpkg-deb -x "$deb" "$root"; done
    for deb in "$out/deb-$arch"/*.deb; do
      purl=$(dpkg-deb -f "$deb" Package Version | awk -v a="$arch" '{v[$1]=$2} END {print "pkg:deb/debian/" v["Package:"] "@" v["Version:"] "?arch=" a}')
      dpkg-deb -c "$deb" | awk -v p="$purl" '$6 !~ /\/$/ {print p " " $6}'
    done >"$list"
    rm -rf "$out/deb-$arch"
  fi
  echo "$root"
}

for arch in "${arches[@]}"; do
  case $arch in
  amd64) target=x86_64-unknown-linux-musl machine=X86-64 emulator=x86_64 ;;
  arm64) target=aarch64-unknown-linux-musl machine=AArch64 emulator=aarch64 ;;
  *) echo "image: $arch: amd64 or arm64" >&2; exit 2 ;;
  esac
  rustup target list --installed 2>/dev/null | grep -qx "$target" || rustup target add "$target" >/dev/null
  echo "image: building for $arch ($profile; some ten minutes the first time)"
  cargo zigbuild --locked --profile "$profile" --target "$target" -p mesh-proxy -p mesh-controller -p meshctl --bins
  folder=$build/$target/$profile
  [ "$profile" = dev ] && folder=$build/$target/debug
  root=$(tools "$arch")
  for program in mesh-proxy mesh-controller meshctl; do
    more=()
    case $program in
    # Capture needs its rights as root; a relay or a gateway runs as anybody (the chart says so).
    mesh-proxy) more=(--tool nft --tool ip --root "$root" --user 0:0 --owners "$out/tools-$arch.txt") title="node proxy, relay and ingress gateway of the Selvage mesh" ;;
    mesh-controller) title="control plane of the Selvage mesh" ;;
    meshctl) title="operator's tool of the Selvage mesh" ;;
    esac
    check "$program $arch: archive and bill of materials" "$build/debug/oci-image" --name "$repository/$program:$tag" --arch "$arch" \
      --binary "$folder/$program" --out "$out/$program-$arch.oci.tar" --sbom "$out/$program-$arch.cdx.json" --target "$target" \
      --label "org.opencontainers.image.title=$program" --label "org.opencontainers.image.description=$title" \
      --label "org.opencontainers.image.version=$version" --label "org.opencontainers.image.revision=$revision" \
      --label "org.opencontainers.image.licenses=Apache-2.0" "${more[@]}"
    check "$program $arch: static, for $machine" is_static "$folder/$program" "$machine"
    check "$program $arch: starts" starts "$folder/$program" "$arch" "$emulator"
  done
done
echo "image: $passed passed, $failed failed, 0 skipped"
[ "$failed" = 0 ]
