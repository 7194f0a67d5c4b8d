// SPDX-License-Identifier: GPL-2.0
/*
 * Drives the SMMUv3TestEngine: tests of the kernel's DMA and IOMMU interfaces, with data that is checked.
 *
 * Each engine gets a /dev/smmulabN; see smmulab.h.
 */
#include <linux/fs.h>
#include <linux/idr.h>
#include <linux/interrupt.h>
#include <linux/io.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/platform_device.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "lab.h"

#define FRAME_BAR	0
#define LINE		128

static DEFINE_IDA(indices);

static bool untrust;
module_param(untrust, bool, 0444);
MODULE_PARM_DESC(untrust, "Do not trust what is behind an external-facing port");

static void lab_release(struct kref *refs)
{
	kfree(container_of(refs, struct lab, refs));
}

/* Begins to use the device, unless it has gone. */
static bool lab_enter(struct lab *lab)
{
	down_read(&lab->life);
	if (!lab->gone)
		return true;
	up_read(&lab->life);
	return false;
}

static void lab_leave(struct lab *lab)
{
	up_read(&lab->life);
}

static int lab_open(struct inode *inode, struct file *filp)
{
	struct lab *lab = container_of(filp->private_data, struct lab, misc);
	struct lab_file *file = kzalloc(sizeof(*file), GFP_KERNEL);

	if (!file)
		return -ENOMEM;
	/* The misc core holds its lock, which deregistering takes: the device is still there. */
	kref_get(&lab->refs);
	file->lab = lab;
	file->frame = -1;
	mutex_init(&file->lock);
	filp->private_data = file;
	return stream_open(inode, filp);
}

static int lab_close(struct inode *inode, struct file *filp)
{
	struct lab_file *file = filp->private_data;

	if (lab_enter(file->lab)) {
		lab_unbind(file);
		lab_leave(file->lab);
	}
	kref_put(&file->lab->refs, lab_release);
	kfree(file->answer);
	kfree(file);
	return 0;
}

static ssize_t lab_write(struct file *filp, const char __user *from, size_t count, loff_t *unused)
{
	struct lab_file *file = filp->private_data;
	char line[LINE];
	ssize_t ret;

	if (count >= sizeof(line))
		return -EINVAL;
	if (copy_from_user(line, from, count))
		return -EFAULT;
	line[count] = 0;
	if (!lab_enter(file->lab))
		return -ENODEV;
	mutex_lock(&file->lock);
	ret = lab_command(file, strim(line));
	mutex_unlock(&file->lock);
	lab_leave(file->lab);
	return ret < 0 ? ret : count;
}

/* Gives the answer once; then there is none. */
static ssize_t lab_read(struct file *filp, char __user *to, size_t count, loff_t *unused)
{
	struct lab_file *file = filp->private_data;
	ssize_t ret;

	mutex_lock(&file->lock);
	count = min(count, file->length);
	ret = count;
	if (count && copy_to_user(to, file->answer, count))
		ret = -EFAULT;
	else if (count) {
		file->length -= count;
		memmove(file->answer, file->answer + count, file->length);
	}
	mutex_unlock(&file->lock);
	return ret;
}

static int lab_user_start(struct lab_file *file, const struct smmulab_job *from)
{
	struct lab_job job = lab_job(from->command, from->begin, from->end_incl - from->begin + 1, from->target);

	if (file->frame < 0)
		return -ENOTCONN;
	if (file->running)
		return -EBUSY;
	if (from->command < ENGINE_MEMCPY || from->command > ENGINE_SUM64 || from->rate > U16_MAX)
		return -EINVAL;
	job.seed = from->seed;
	job.stride = from->stride;
	job.rate = from->rate;
	job.substream = file->pasid;
	lab_start(file->lab, file->frame, &job);
	file->running = true;
	return 0;
}

static int lab_user_wait(struct lab_file *file, struct smmulab_job *job)
{
	struct lab *lab = file->lab;

	if (!file->running)
		return -ENOENT;
	if (lab_wait(lab, file->frame, false) == -ETIMEDOUT)
		return -ETIMEDOUT;
	file->running = false;
	job->state = lab_state(lab, file->frame);
	job->sum = lab_sum(lab, file->frame);
	job->fault = lab_fault(lab, file->frame);
	return 0;
}

static long lab_ioctl_locked(struct lab_file *file, unsigned int command, void __user *argument)
{
	struct smmulab_job job;
	int ret;

	switch (command) {
	case SMMULAB_BIND:
		ret = lab_bind(file);
		return ret ?: put_user(file->pasid, (u32 __user *)argument);
	case SMMULAB_UNBIND:
		lab_unbind(file);
		return 0;
	case SMMULAB_START:
	case SMMULAB_WAIT:
		if (copy_from_user(&job, argument, sizeof(job)))
			return -EFAULT;
		if (command == SMMULAB_START)
			return lab_user_start(file, &job);
		ret = lab_user_wait(file, &job);
		if (!ret && copy_to_user(argument, &job, sizeof(job)))
			ret = -EFAULT;
		return ret;
	default:
		return -ENOTTY;
	}
}

static long lab_ioctl(struct file *filp, unsigned int command, unsigned long argument)
{
	struct lab_file *file = filp->private_data;
	long ret;

	if (!lab_enter(file->lab))
		return -ENODEV;
	mutex_lock(&file->lock);
	ret = lab_ioctl_locked(file, command, (void __user *)argument);
	mutex_unlock(&file->lock);
	lab_leave(file->lab);
	return ret;
}

static const struct file_operations lab_fops = {
	.owner		= THIS_MODULE,
	.open		= lab_open,
	.release	= lab_close,
	.write		= lab_write,
	.read		= lab_read,
	.unlocked_ioctl	= lab_ioctl,
};

static irqreturn_t lab_interrupt(int irq, void *data)
{
	struct completion *done = data;

	complete(done);
	return IRQ_HANDLED;
}

/* Makes the device known. The registers are mapped, the interrupts are requested. */
static int lab_add(struct lab *lab)
{
	int ret = dma_set_mask_and_coherent(lab->dev, DMA_BIT_MASK(48));

	if (ret)
		return ret;
	/* A list of pages may become one range, however long. */
	dma_set_max_seg_size(lab->dev, UINT_MAX);
	lab->index = ida_alloc(&indices, GFP_KERNEL);
	if (lab->index < 0)
		return lab->index;
	lab_sva_enable(lab);
	snprintf(lab->name, sizeof(lab->name), "smmulab%d", lab->index);
	lab->misc.minor = MISC_DYNAMIC_MINOR;
	lab->misc.name = lab->name;
	lab->misc.fops = &lab_fops;
	lab->misc.parent = lab->dev;
	ret = misc_register(&lab->misc);
	if (ret) {
		lab_sva_disable(lab);
		ida_free(&indices, lab->index);
		return ret;
	}
	dev_set_drvdata(lab->dev, lab);
	return 0;
}

static void lab_remove(struct lab *lab)
{
	misc_deregister(&lab->misc);
	down_write(&lab->life);
	lab->gone = true;
	up_write(&lab->life);
	lab_sva_disable(lab);
	ida_free(&indices, lab->index);
}

static struct lab *lab_new(struct device *dev)
{
	struct lab *lab = kzalloc(sizeof(*lab), GFP_KERNEL);
	int i;

	if (!lab)
		return NULL;
	lab->dev = dev;
	kref_init(&lab->refs);
	init_rwsem(&lab->life);
	spin_lock_init(&lab->lock);
	for (i = 0; i < LAB_VECTORS; i++)
		init_completion(&lab->done[i]);
	return lab;
}

static int lab_pci_interrupts(struct lab *lab, struct pci_dev *pdev)
{
	int got = pci_alloc_irq_vectors(pdev, 1, LAB_VECTORS, PCI_IRQ_MSIX), i, ret;

	if (got < 0)
		return got;
	for (i = 0; i < got; i++) {
		ret = request_irq(pci_irq_vector(pdev, i), lab_interrupt, 0, "smmulab", &lab->done[i]);
		if (ret)
			goto undo;
	}
	lab->vectors = got;
	return 0;

undo:
	while (i--)
		free_irq(pci_irq_vector(pdev, i), &lab->done[i]);
	pci_free_irq_vectors(pdev);
	return ret;
}

static void lab_pci_no_interrupts(struct lab *lab, struct pci_dev *pdev)
{
	int i;

	for (i = 0; i < lab->vectors; i++)
		free_irq(pci_irq_vector(pdev, i), &lab->done[i]);
	pci_free_irq_vectors(pdev);
}

static int lab_pci_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct lab *lab = lab_new(&pdev->dev);
	int ret;

	if (!lab)
		return -ENOMEM;
	ret = pci_enable_device_mem(pdev);
	if (ret)
		goto no_device;
	ret = pci_request_region(pdev, FRAME_BAR, "smmulab");
	if (ret)
		goto no_region;
	ret = -ENOMEM;
	lab->regs = pci_iomap(pdev, FRAME_BAR, 0);
	if (!lab->regs)
		goto no_regs;
	pci_set_master(pdev);
	ret = lab_pci_interrupts(lab, pdev);
	if (ret)
		goto no_interrupts;
	ret = lab_add(lab);
	if (!ret)
		return 0;
	lab_pci_no_interrupts(lab, pdev);
no_interrupts:
	pci_clear_master(pdev);
	pci_iounmap(pdev, lab->regs);
no_regs:
	pci_release_region(pdev, FRAME_BAR);
no_region:
	pci_disable_device(pdev);
no_device:
	kref_put(&lab->refs, lab_release);
	return ret;
}

static void lab_pci_remove(struct pci_dev *pdev)
{
	struct lab *lab = pci_get_drvdata(pdev);

	lab_remove(lab);
	lab_pci_no_interrupts(lab, pdev);
	pci_clear_master(pdev);
	pci_iounmap(pdev, lab->regs);
	pci_release_region(pdev, FRAME_BAR);
	pci_disable_device(pdev);
	kref_put(&lab->refs, lab_release);
}

static const struct pci_device_id lab_pci_ids[] = {
	{ PCI_DEVICE(ENGINE_VENDOR, ENGINE_DEVICE) },
	{ }
};
MODULE_DEVICE_TABLE(pci, lab_pci_ids);

static struct pci_driver lab_pci_driver = {
	.name		= "smmulab-engine",
	.id_table	= lab_pci_ids,
	.probe		= lab_pci_probe,
	.remove		= lab_pci_remove,
};

static void lab_put(void *lab)
{
	kref_put(&((struct lab *)lab)->refs, lab_release);
}

/* The first frames have a wire each. */
static int lab_platform_interrupts(struct lab *lab, struct platform_device *pdev)
{
	int count = min(platform_irq_count(pdev), LAB_VECTORS), i;

	for (i = 0; i < count; i++) {
		int irq = platform_get_irq(pdev, i), ret;

		if (irq < 0)
			return irq;
		ret = devm_request_irq(&pdev->dev, irq, lab_interrupt, 0, "smmulab", &lab->done[i]);
		if (ret)
			return ret;
	}
	lab->vectors = max(count, 0);
	return 0;
}

static int lab_platform_probe(struct platform_device *pdev)
{
	struct lab *lab = lab_new(&pdev->dev);
	int ret;

	if (!lab)
		return -ENOMEM;
	/* Undone last, after the interrupts. */
	ret = devm_add_action_or_reset(&pdev->dev, lab_put, lab);
	if (ret)
		return ret;
	lab->regs = devm_platform_ioremap_resource(pdev, 0);
	if (IS_ERR(lab->regs))
		return PTR_ERR(lab->regs);
	return lab_platform_interrupts(lab, pdev) ?: lab_add(lab);
}

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 11, 0)
#define PLATFORM_RETURNS	void
#define PLATFORM_RETURN
#else
#define PLATFORM_RETURNS	int
#define PLATFORM_RETURN		return 0
#endif

static PLATFORM_RETURNS lab_platform_remove(struct platform_device *pdev)
{
	lab_remove(platform_get_drvdata(pdev));
	PLATFORM_RETURN;
}

static const struct of_device_id lab_of_ids[] = {
	{ .compatible = "smmulab,smmuv3-test-engine" },
	{ }
};
MODULE_DEVICE_TABLE(of, lab_of_ids);

static struct platform_driver lab_platform_driver = {
	.driver = {
		.name		= "smmulab-engine",
		.of_match_table	= lab_of_ids,
	},
	.probe	= lab_platform_probe,
	.remove	= lab_platform_remove,
};

static int __init lab_init(void)
{
	int ret;

	if (untrust)
		lab_untrust();
	ret = pci_register_driver(&lab_pci_driver);
	if (ret)
		return ret;
	ret = platform_driver_register(&lab_platform_driver);
	if (ret)
		pci_unregister_driver(&lab_pci_driver);
	return ret;
}

static void __exit lab_exit(void)
{
	platform_driver_unregister(&lab_platform_driver);
	pci_unregister_driver(&lab_pci_driver);
	ida_destroy(&indices);
}

module_init(lab_init);
module_exit(lab_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Tests of DMA behind an SMMUv3, by the SMMUv3TestEngine");
