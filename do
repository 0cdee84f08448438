#!/usr/bin/env bash
# The two commands of the README, and what CI adds. On a fresh Debian machine they install what they need.
#
#   ./do demo [--once]   build portferry and play its demonstration
#   ./do test            all tests; as root the lab in network namespaces too
#   ./do check           formatting, lints, licences (CI runs this and then the tests)
#   ./do bench           as root: what it costs beside miniupnpd (docs/performance.md)
set -euo pipefail
cd "$(dirname "$0")"

MINIMUM_RUST=95 # 1.95

say() { printf '%s\n' "do: $*" >&2; }

is_installed() {
    dpkg-query -W -f '${Status}' "$1" 2>/dev/null | grep -q 'ok installed'
}

# install PACKAGE...: by apt, as root; otherwise the line to type.
install() {
    local missing=()
    for package in "$@"; do
        is_installed "$package" || missing+=("$package")
    done
    [ ${#missing[@]} -eq 0 ] && return
    if [ "$(id -u)" -ne 0 ]; then
        say "missing: ${missing[*]}; as root: apt-get install ${missing[*]}"
        return 1
    fi
    say "installing ${missing[*]}"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

rust_is_new_enough() {
    command -v cargo >/dev/null && command -v rustc >/dev/null &&
        [ "$(rustc --version | sed -E 's/^rustc 1\.([0-9]+).*/\1/')" -ge "$MINIMUM_RUST" ]
}

rust() {
    rust_is_new_enough || install rustc-web cargo-web
    rust_is_new_enough || { say "Rust 1.$MINIMUM_RUST or newer is needed, and Debian's rustc-web is older"; exit 1; }
    command -v cc >/dev/null || install gcc libc6-dev
}

demo() {
    rust
    cargo build --locked --quiet -p portferry
    exec "${CARGO_TARGET_DIR:-target}/debug/portferry" demo "$@"
}

tests() {
    rust
    if [ "$(id -u)" -eq 0 ]; then
        # The tests start their own; the package would start one for everybody.
        if ! is_installed transmission-daemon && command -v systemctl >/dev/null; then
            systemctl mask --quiet transmission-daemon.service
        fi
        # A firewall of the machine's own is not what anybody asked for.
        if ! is_installed firewalld && command -v systemctl >/dev/null; then
            systemctl mask --quiet firewalld.service
        fi
        install iproute2 procps util-linux nftables miniupnpd-nftables miniupnpc natpmpc tcpdump \
            wireguard-tools wireguard-go ufw python3 python3-libtorrent transmission-daemon qbittorrent-nox \
            dnsmasq-base isc-dhcp-client dhcpcd-base udhcpc firewalld dbus-daemon iptables systemd
    else
        say "not root: the tests in network namespaces (lab, kernel) are skipped, and say so"
    fi
    # The lab runs the daemon as it is shipped, so the binary has to be there first.
    cargo build --locked -p portferry
    # All of it, so that one run tells all that fails.
    cargo test --locked --workspace --no-fail-fast "$@"
}

bench() {
    rust
    [ "$(id -u)" -eq 0 ] || { say "the bench needs root (network namespaces)"; exit 77; }
    install iproute2 procps nftables miniupnpd-nftables miniupnpc natpmpc tcpdump
    cargo build --locked --quiet --release -p portferry
    cargo build --locked --quiet --release -p lab --bin lab-bench
    exec "${CARGO_TARGET_DIR:-target}/release/lab-bench" "$@"
}

check() {
    rust
    if cargo fmt --version >/dev/null 2>&1 || install rustfmt-web; then
        cargo fmt --all --check
    else
        say "SKIPPED formatting: rustfmt is missing"
    fi
    command -v shellcheck >/dev/null || install shellcheck
    shellcheck packaging/dhcp/*
    if cargo clippy --version >/dev/null 2>&1 || install rust-web-clippy; then
        command -v c++ >/dev/null || install g++ # the fuzzing runtime
        cargo clippy --locked --workspace --all-targets -- -D warnings
        cargo clippy --locked -p fuzz --all-targets --features libfuzzer -- -D warnings
    else
        say "SKIPPED lints: clippy is missing"
    fi
    RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps --quiet
    if ! cargo deny --version >/dev/null 2>&1; then
        say "installing cargo-deny (some minutes, once)"
        cargo install --locked --quiet cargo-deny --version '^0.20' || true
    fi
    if cargo deny --version >/dev/null 2>&1; then
        # Advisories need a copy of their database, which a closed network does not have.
        cargo deny --all-features check licenses bans sources
    else
        say "SKIPPED licences and sources: cargo-deny could not be installed"
    fi
}

command=${1:-}
[ $# -gt 0 ] && shift
case $command in
demo) demo "$@" ;;
test) tests "$@" ;;
check) check ;;
bench) bench "$@" ;;
*)
    say "usage: ./do demo [--once] | ./do test | ./do check | ./do bench [--quick] [--write] [FIGURE...]"
    exit 64
    ;;
esac
