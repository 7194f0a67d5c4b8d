# Demands: programs that have the PCI engine from the kernel map, unmap and remap while it does DMA. Wants --tools.
# PROGRAMS are some of vfio (type 1), iommufd, nested; ROUNDS is how often they map. With HOW=correct there is no DMA to what
# is not mapped.
for device in /sys/bus/pci/devices/*; do
    [ "$(cat "$device/vendor" "$device/device")" != "0x13b5
0xff80" ] || break
done
device=${device##*/}
modprobe -q -a vfio-pci vfio_iommu_type1
echo vfio-pci >"/sys/bus/pci/devices/$device/driver_override"
echo "$device" >/sys/bus/pci/drivers_probe
[ -e /dev/vfio/vfio ] || { echo "no VFIO"; exit 1; }
for program in ${PROGRAMS:-vfio iommufd nested}; do
    labtest "$program" "$device" "${ROUNDS:-20}" $HOW || exit 1
done
