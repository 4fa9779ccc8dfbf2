#!/bin/busybox sh
# The first process of the machine that `cargo xtask vm-test` boots. It sets up what a
# distribution would have, runs the programs of /overlay/plan, and reports on the second serial
# line in the words that the host side parses; the first one is the kernel's.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TMPDIR=/tmp RUST_BACKTRACE=0
/bin/busybox mkdir -p /proc /sys /dev /run /tmp /root /var/lib /sbin /usr/bin /usr/sbin
# Only what is missing: the distribution's own ip is not busybox's.
for applet in $(/bin/busybox --list); do
    for dir in /bin /usr/bin /sbin /usr/sbin; do
        [ -e "$dir/$applet" ] && continue 2
    done
    /bin/busybox ln -s /bin/busybox "/bin/$applet"
done
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
ip link set lo up
hostname vm

exec >/dev/ttyS1 2>&1
if grep -qw overlay.probe /proc/cmdline; then
    echo "vm-test: booted $(uname -r)"
    poweroff -f
fi
while read -r module; do
    insmod "/modules/$module" || echo "vm-test: broken module $module"
done </modules/order
echo "vm-test: booted $(uname -r)"
cd /overlay || poweroff -f
while read -r name program arguments; do
    echo "vm-test: run $name"
    # Unquoted: the plan's arguments are words.
    "$program" $arguments </dev/null
    echo "vm-test: end $name $?"
done </overlay/plan
echo "vm-test: over"
# The line takes its time to drain.
sleep 1
poweroff -f
