# Demands: the SMMUv3 driver has probed, nothing about it or about DMA is logged at warning level or above, and the
# kernel has not warned of anything with a backtrace. `dmesg -r` gives the level in angle brackets.
bad=0
dmesg | grep -q 'arm-smmu-v3 .*oas ' || { echo "no SMMUv3 has probed"; bad=1; }
dmesg -r | grep -E '^<[0-4]>.*(smmu|iommu|DMA-API|swiotlb)' && bad=1
dmesg | grep -E 'WARNING:|BUG:|Oops|Call trace:|Internal error|unexpected interrupt|nobody cared' && bad=1
exit $bad
