// SPDX-License-Identifier: GPL-2.0
/*
 * untrust=1: does not trust what is behind an external-facing port.
 *
 * Linux did so by itself once. Since "PCI: Detect and trust built-in Thunderbolt chips" (6.13, and stable kernels that took it)
 * it is for the architecture to say which devices are meant (arch_pci_dev_is_removable), and only x86 does: on arm64 the port is
 * known to face outwards, and nothing follows from that. What the DMA layer does for an untrusted device is the same as ever.
 */
#include <linux/pci.h>

#include "lab.h"

void lab_untrust(void)
{
	struct pci_dev *pdev = NULL, *bridge;

	for_each_pci_dev(pdev) {
		bridge = pci_upstream_bridge(pdev);
		if (!bridge || !(bridge->external_facing || bridge->untrusted) || pdev->untrusted)
			continue;
		pdev->untrusted = true;
		pci_info(pdev, "is behind an external-facing port: not trusted\n");
	}
}
