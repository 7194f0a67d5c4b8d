// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/* VFIO with its type 1 IOMMU: container, group, map, unmap. The device is bound to vfio-pci already. */
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <linux/vfio.h>

#include "labtest.h"

static void map(void *self, void *memory, uint64_t size, uint64_t iova)
{
	struct vfio_iommu_type1_dma_map map = {
		.argsz = sizeof(map),
		.flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
		.vaddr = (uintptr_t)memory,
		.iova = iova,
		.size = size,
	};

	demand(!ioctl(*(int *)self, VFIO_IOMMU_MAP_DMA, &map), "VFIO_IOMMU_MAP_DMA");
}

static void unmap(void *self, uint64_t iova, uint64_t size)
{
	struct vfio_iommu_type1_dma_unmap unmap = { .argsz = sizeof(unmap), .iova = iova, .size = size };

	demand(!ioctl(*(int *)self, VFIO_IOMMU_UNMAP_DMA, &unmap), "VFIO_IOMMU_UNMAP_DMA");
	demand(unmap.size == size, "unmapped %llx bytes", (unsigned long long)unmap.size);
}

static int open_group(const char *device)
{
	struct vfio_group_status status = { .argsz = sizeof(status) };
	char path[256], link[256];
	ssize_t length;
	int group;

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/iommu_group", device);
	length = readlink(path, link, sizeof(link) - 1);
	demand(length > 0, "%s", path);
	link[length] = 0;
	snprintf(path, sizeof(path), "/dev/vfio/%s", basename(link));
	group = open(path, O_RDWR);
	demand(group >= 0, "%s", path);
	demand(!ioctl(group, VFIO_GROUP_GET_STATUS, &status), "VFIO_GROUP_GET_STATUS");
	demand(status.flags & VFIO_GROUP_FLAGS_VIABLE, "the group is not viable");
	return group;
}

int vfio_main(int argc, char **argv)
{
	struct engine engine;
	int container, group, device;
	struct mapper mapper = { map, unmap, &container };

	demand(argc > 1, "which device?");
	container = open("/dev/vfio/vfio", O_RDWR);
	demand(container >= 0, "/dev/vfio/vfio");
	demand(ioctl(container, VFIO_CHECK_EXTENSION, VFIO_TYPE1v2_IOMMU) == 1, "no type 1 IOMMU");
	group = open_group(argv[1]);
	demand(!ioctl(group, VFIO_GROUP_SET_CONTAINER, &container), "VFIO_GROUP_SET_CONTAINER");
	demand(!ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU), "VFIO_SET_IOMMU");
	device = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, argv[1]);
	demand(device >= 0, "VFIO_GROUP_GET_DEVICE_FD");
	engine_open(&engine, device);
	map_under_dma(&engine, &mapper, argc, argv);
	return 0;
}
