# Demands: each PCI device with MSI-X uses it, its messages come through the ITS, and some have come. Every online CPU
# takes timer interrupts.
bad=0
grep -E 'ITS-.*MSI' /proc/interrupts >/tmp/msi || { echo "no MSI comes through the ITS"; bad=1; }
for device in /sys/bus/virtio/devices/*; do
    [ -e "$device/driver" ] || continue
    name=${device##*/}
    pci=$(readlink -f "$device/..")
    case "${pci##*/}" in *:*:*.*) ;; *) continue ;; esac
    # Behind the names of the vectors: virtio0-config, virtio0-req.0, virtio0-input.0 and so on.
    total=$(grep "$name-" /tmp/msi | awk -v cpus="$(nproc)" '{ for (i = 2; i <= cpus + 1; i++) n += $i } END { print n + 0 }')
    case "$(cat "$device/modalias")" in
    virtio:d00000002*) [ "$total" -gt 0 ] || { echo "$name: no MSI from the disk"; bad=1; } ;;
    *) grep -q "$name-" /tmp/msi || { echo "$name has no MSI-X vector"; bad=1; } ;;
    esac
done
for cpu in $(seq 0 $(($(nproc) - 1))); do
    ticks=$(awk -v column=$((cpu + 2)) '/arch_timer/ { print $column }' /proc/interrupts)
    [ "${ticks:-0}" -gt 0 ] || { echo "CPU $cpu has had no timer interrupt"; bad=1; }
done
exit $bad
