// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/* iommufd: a device file of VFIO's, bound to an I/O address space. The device is bound to vfio-pci already. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/ioctl.h>

#include <linux/iommufd.h>
#include <linux/vfio.h>

#include "labtest.h"

/* The device's file: /sys/bus/pci/devices/ADDRESS/vfio-dev/vfioN gives it its name. */
static int open_device(const char *device)
{
	char path[512];
	struct dirent *entry;
	DIR *directory;
	int fd = -1;

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/vfio-dev", device);
	directory = opendir(path);
	demand(directory, "%s", path);
	while (fd < 0 && (entry = readdir(directory)))
		if (entry->d_name[0] == 'v') {
			snprintf(path, sizeof(path), "/dev/vfio/devices/%s", entry->d_name);
			fd = open(path, O_RDWR);
		}
	closedir(directory);
	demand(fd >= 0, "%s", path);
	return fd;
}

void iommufd_open(struct bound *bound, const char *device)
{
	struct vfio_device_bind_iommufd bind = { .argsz = sizeof(bind) };
	struct iommu_ioas_alloc alloc = { .size = sizeof(alloc) };
	int fd = open_device(device);

	bound->iommufd = open("/dev/iommu", O_RDWR);
	demand(bound->iommufd >= 0, "/dev/iommu");
	bind.iommufd = bound->iommufd;
	demand(!ioctl(fd, VFIO_DEVICE_BIND_IOMMUFD, &bind), "VFIO_DEVICE_BIND_IOMMUFD");
	bound->device_id = bind.out_devid;
	demand(!ioctl(bound->iommufd, IOMMU_IOAS_ALLOC, &alloc), "IOMMU_IOAS_ALLOC");
	bound->ioas = alloc.out_ioas_id;
	engine_open(&bound->engine, fd);
}

void iommufd_attach(struct bound *bound, uint32_t page_table)
{
	struct vfio_device_attach_iommufd_pt attach = { .argsz = sizeof(attach), .pt_id = page_table };

	demand(!ioctl(bound->engine.device, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach), "VFIO_DEVICE_ATTACH_IOMMUFD_PT");
}

void iommufd_map(struct bound *bound, void *memory, uint64_t size, uint64_t iova)
{
	struct iommu_ioas_map map = {
		.size = sizeof(map),
		.flags = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE,
		.ioas_id = bound->ioas,
		.user_va = (uintptr_t)memory,
		.length = size,
		.iova = iova,
	};

	demand(!ioctl(bound->iommufd, IOMMU_IOAS_MAP, &map), "IOMMU_IOAS_MAP");
}

void iommufd_unmap(struct bound *bound, uint64_t iova, uint64_t size)
{
	struct iommu_ioas_unmap unmap = {
		.size = sizeof(unmap), .ioas_id = bound->ioas, .iova = iova, .length = size,
	};

	demand(!ioctl(bound->iommufd, IOMMU_IOAS_UNMAP, &unmap), "IOMMU_IOAS_UNMAP");
}

static void map(void *self, void *memory, uint64_t size, uint64_t iova)
{
	iommufd_map(self, memory, size, iova);
}

static void unmap(void *self, uint64_t iova, uint64_t size)
{
	iommufd_unmap(self, iova, size);
}

int iommufd_main(int argc, char **argv)
{
	struct bound bound;
	struct mapper mapper = { map, unmap, &bound };

	demand(argc > 1, "which device?");
	iommufd_open(&bound, argv[1]);
	iommufd_attach(&bound, bound.ioas);
	map_under_dma(&bound.engine, &mapper, argc, argv);
	return 0;
}
