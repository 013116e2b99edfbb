#!/bin/sh
# Takes the samples of `cargo xtask bench --peer firecracker=PATH` in the emulated host, Firecracker's and Ember's: a file of
# JSON lines per series in $OUT. $1: echo or python. $PEER is the Firecracker.
#
# Both get the kernel, the modules and the root image of one bundle; Firecracker's initramfs has peer/guest.c where Ember's has its
# agent. Firecracker's snapshots lie where everything timed does.
set -eu
. "$EMBER_BENCHES/common/place.sh"

warm=${SAMPLES_WARM:-21}
cold=${SAMPLES_COLD:-7}

cp "$BENCH_TOOLS/driver" "$place"
cp "$PEER" "$place/firecracker"
driver=$place/driver
firecracker=$place/firecracker

# Firecracker's own default words without `nomodule`, since Debian's kernel has the drivers as modules, then those of Ember's words
# that make this kernel start sooner. There is no serial port, so nothing waits for one. Firecracker adds `pci=off` and the root.
words="reboot=k panic=1 8250.nr_uarts=0 i8042.noaux i8042.nomux i8042.dumbkbd swiotlb=noforce quiet \
cryptomgr.notests tsc=reliable nowatchdog lsm=landlock psi=0"

# The bundle's initramfs with another /init.
initramfs() { # BUNDLE
    mkdir "$place/tree"
    (cd "$place/tree" && cpio -idm 2>/dev/null) <"$place/$1/initramfs"
    cp "$BENCH_TOOLS/guest" "$place/tree/init"
    cp "$EMBER_BENCHES/peer/server.py" "$place/tree/server.py"
    (cd "$place/tree" && find . | cpio -o -H newc 2>/dev/null) >"$place/peer/initramfs"
    rm -r "$place/tree"
}

drive() { # ID FILE IS_ROOT
    printf '{"drive_id": "%s", "path_on_host": "%s", "is_root_device": %s, "is_read_only": true}' "$1" "$2" "$3"
}

machine() { # BUNDLE FUNCTION
    mkdir "$place/peer"
    initramfs "$1"
    ln "$place/$1/kernel" "$place/$1/root.img" "$place/peer"
    drives=$(drive root root.img true)
    if [ -f "$place/$1/drive-function.img" ]; then
        ln "$place/$1/drive-function.img" "$place/peer"
        drives="$drives, $(drive function drive-function.img false)"
    fi
    cat >"$place/peer/vm.json" <<END
{
  "boot-source": {"kernel_image_path": "kernel", "initrd_path": "initramfs", "boot_args": "$words FUNCTION=$2"},
  "machine-config": {"vcpu_count": 1, "mem_size_mib": 256},
  "drives": [$drives],
  "vsock": {"guest_cid": 3, "uds_path": "v.sock"}
}
END
    cp "$place/peer/vm.json" "$OUT"
    "$firecracker" --version | head -n 1 >"$OUT/version"
}

firecracker() { # LABEL SAMPLES EVENT
    say "    Firecracker, $1: $2 samples"
    "$driver" "$1" "$place/peer" "$3" "$firecracker" "$OUT/firecracker-$1.jsonl" "$2" "$pause_us"
}

ember() { # LABEL SAMPLES ARGUMENT...
    label=$1
    count=$2
    shift 2
    series "ember-$label" "$count" "$label" $run "$@"
}

measure() { # BUNDLE EVENT
    say "    taking Firecracker's snapshot"
    "$driver" make "$place/peer" "$2" "$firecracker"
    firecracker restore "$warm" "$2"
    ember restore "$warm" "$place/$1" --event-text "$2"
    firecracker load "$warm" "$2"
    firecracker cold "$cold" "$2"
    ember cold "$cold" "$place/$1" --event-text "$2" --cold
}

case $1 in
echo)
    bake echo --config "$EMBER_EXAMPLES/echo/ember.toml" --root "$EMBER_ROOT_PYTHON"
    machine echo echo
    measure echo hello
    ;;
python)
    bake python --config "$EMBER_BENCHES/python/ember.toml" --root "$EMBER_ROOT_PYTHON"
    machine python python
    measure python "$(cat "$EMBER_EXAMPLES/lambda/event")"
    ;;
esac
