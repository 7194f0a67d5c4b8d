# Demands: the kernel's dma_map_benchmark runs on the PCI engine with THREADS threads for one second. Wants --tools.
for device in /sys/bus/pci/devices/*; do
    [ "$(cat "$device/vendor" "$device/device")" != "0x13b5
0xff80" ] || break
done
echo dma_map_benchmark >"$device/driver_override"
echo "${device##*/}" >/sys/bus/pci/drivers_probe
labtest map-benchmark "${THREADS:-1}" 1
