// SPDX-License-Identifier: GPL-2.0
/* Binds processes to the engine: it then uses their addresses, by a PASID. */
#include <linux/sched.h>
#include <linux/sched/mm.h>

#include "lab.h"

/* Up to 6.15 a driver asks for SVA and page faults; since then they are there when they are needed. */
#define FEATURES	(LINUX_VERSION_CODE < KERNEL_VERSION(6, 16, 0))

#if FEATURES
static bool lab_feature(struct lab *lab, enum iommu_dev_features feature)
{
	return !iommu_dev_enable_feature(lab->dev, feature);
}
#endif

/* Without SVA in the device or the kernel all else still works. */
void lab_sva_enable(struct lab *lab)
{
#if FEATURES
	lab->iopf = lab_feature(lab, IOMMU_DEV_FEAT_IOPF);
	lab->sva = lab_feature(lab, IOMMU_DEV_FEAT_SVA);
#endif
}

void lab_sva_disable(struct lab *lab)
{
#if FEATURES
	if (lab->sva)
		iommu_dev_disable_feature(lab->dev, IOMMU_DEV_FEAT_SVA);
	if (lab->iopf)
		iommu_dev_disable_feature(lab->dev, IOMMU_DEV_FEAT_IOPF);
#endif
}

static struct iommu_sva *bind(struct lab *lab, struct mm_struct *mm)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 2, 0)
	return iommu_sva_bind_device(lab->dev, mm);
#else
	return iommu_sva_bind_device(lab->dev, mm, NULL);
#endif
}

struct bind_race {
	struct lab *lab;
	struct mm_struct *mm;
	unsigned long loops;
};

static int bind_thread(void *data, unsigned long thread)
{
	struct bind_race *race = data;
	unsigned long i, use;

	for (i = 0; i < race->loops; i++) {
		struct iommu_sva *bond = bind(race->lab, race->mm);

		if (IS_ERR_OR_NULL(bond))
			return bond ? PTR_ERR(bond) : -EOPNOTSUPP;
		/* Something is done with it. Counted, not timed: so it takes as many instructions in every schedule. */
		for (use = 0; use < 200; use++)
			cpu_relax();
		iommu_sva_unbind_device(bond);
	}
	return 0;
}

/* The calling process is there until all threads are done. */
int lab_bind_race(struct lab_file *file, const struct lab_args *args)
{
	struct bind_race race = { file->lab, current->mm, args->loops };

	return lab_parallel(args, args->threads, bind_thread, &race);
}

int lab_bind(struct lab_file *file)
{
	struct lab *lab = file->lab;
	struct iommu_sva *bond;
	int frame;

	if (file->bond)
		return -EBUSY;
	frame = lab_frame_get(lab);
	if (frame < 0)
		return frame;
	bond = bind(lab, current->mm);
	if (IS_ERR_OR_NULL(bond)) {
		lab_frame_put(lab, frame);
		return bond ? PTR_ERR(bond) : -EOPNOTSUPP;
	}
	file->bond = bond;
	file->pasid = iommu_sva_get_pasid(bond);
	file->frame = frame;
	return 0;
}

int lab_bind_test(struct lab_file *file, const struct lab_args *args)
{
	return lab_bind(file);
}

void lab_unbind(struct lab_file *file)
{
	if (!file->bond)
		return;
	/* The engine has to be done with the PASID first. If the process is gone, what is left of its command faults. */
	if (file->running)
		lab_wait(file->lab, file->frame, false);
	file->running = false;
	iommu_sva_unbind_device(file->bond);
	lab_frame_put(file->lab, file->frame);
	file->bond = NULL;
	file->frame = -1;
}
