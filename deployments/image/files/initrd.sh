#!/bin/busybox sh
# PID 1 of the initrd: find the root, have the kernel verify it, and hand over to it. Whatever fails
# ends the machine: there is nobody to ask, and no shell to fall into.
PATH=/bin
export DM_DISABLE_UDEV=1

fail() {
    echo "<3>aicert: $1" >/dev/kmsg # an error: it stands on the console
    sleep 1
    poweroff -f
}

/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
# Drivers of other machines than this one find nothing, and say so by failing.
for module in /modules/*.ko; do
    insmod "$module" 2>/dev/null
done

# The command line is measured: aicert.root=ROOT-HASH,SALT,BLOCKS
for word in $(cat /proc/cmdline); do
    case "$word" in aicert.root=*) root=${word#aicert.root=} ;; esac
done
IFS=, read -r hash salt blocks <<END
${root:-}
END
[ -n "$blocks" ] || fail "the command line names no root"

tries=0
while :; do
    part=$(grep -l '^PARTNAME=aicert-root$' /sys/class/block/*/uevent 2>/dev/null | head -n 1)
    [ -z "$part" ] || break
    tries=$((tries + 1))
    [ "$tries" -lt 150 ] || fail "there is no disk with the root"
    sleep 0.2
done
device=/dev/$(basename "$(dirname "$part")")
dmsetup create root --readonly --table \
    "0 $((blocks * 8)) verity 1 $device $device 4096 4096 $blocks $blocks sha256 $hash $salt 1 panic_on_corruption" ||
    fail "the root cannot be set up"
mount -t squashfs -o ro /dev/dm-0 /root || fail "the root is not the one that was measured"
umount /proc
umount /sys
exec switch_root /root /usr/bin/python3.13 -I -B /usr/lib/aicert/init.py
fail "the root has no agent"
