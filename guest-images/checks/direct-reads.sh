# Demands: nothing by itself. Reads the first disk in 20,000 (or $COUNT) direct requests of 4 KiB, from its beginning
# and again, and prints the seconds of guest time that they took.
[ -b /dev/vda ] || { echo "no disk"; exit 1; }
count=${COUNT:-20000}
blocks=$(($(cat /sys/block/vda/size) / 8))
[ "$blocks" -gt 0 ] || { echo "the disk is empty"; exit 1; }
read -r start _ </proc/uptime
while [ "$count" -gt 0 ]; do
    some=$((count < blocks ? count : blocks))
    dd if=/dev/vda of=/dev/null bs=4k count=$some iflag=direct 2>/dev/null || { echo "a read failed"; exit 1; }
    count=$((count - some))
done
read -r end _ </proc/uptime
awk -v a="$start" -v b="$end" 'BEGIN { printf "%.2f\n", b - a }'
