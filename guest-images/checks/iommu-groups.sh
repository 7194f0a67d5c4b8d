# Demands: the SMMU has taken charge of every PCI device that can do DMA (bridges aside), each in an IOMMU group whose
# domain is of the kind that the kernel command line asks for (passthrough, lazy or strict, where one is named).
want=
case " $(cat /proc/cmdline) " in
*" iommu.passthrough=1 "*) want=identity ;;
*" iommu.strict=0 "*) want=DMA-FQ ;;
*" iommu.strict=1 "*) want=DMA ;;
esac
bad=0 seen=0
for device in /sys/bus/pci/devices/*; do
    case "$(cat "$device/class")" in 0x06*) continue ;; esac
    seen=$((seen + 1))
    if [ ! -e "$device/iommu_group" ]; then
        echo "${device##*/} is in no IOMMU group"
        bad=1
        continue
    fi
    kind=$(cat "$device/iommu_group/type")
    if [ -n "$want" ] && [ "$kind" != "$want" ]; then
        echo "${device##*/} has a domain of kind $kind, not $want"
        bad=1
    fi
done
[ $seen -gt 0 ] || { echo "no PCI device"; bad=1; }
exit $bad
