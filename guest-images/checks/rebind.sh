# Demands: a disk can be taken from its driver and given back while the IOMMU is on: the driver resets the device, all
# mappings go away, and the disk reads as before.
[ -b /dev/vda ] || { echo "no disk"; exit 1; }
before=$(dd if=/dev/vda bs=1M count=1 2>/dev/null | sha256sum)
pci=$(readlink -f /sys/block/vda/device/..)
pci=${pci##*/}
echo "$pci" >/sys/bus/pci/drivers/virtio-pci/unbind
[ ! -e /sys/block/vda ] || { echo "the disk is still there"; exit 1; }
echo "$pci" >/sys/bus/pci/drivers/virtio-pci/bind
[ -b /dev/vda ] || { echo "the disk has not come back"; exit 1; }
after=$(dd if=/dev/vda bs=1M count=1 2>/dev/null | sha256sum)
[ "$before" = "$after" ] || { echo "the disk reads differently"; exit 1; }
