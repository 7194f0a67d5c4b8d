/* SPDX-License-Identifier: GPL-2.0 OR BSD-3-Clause */
/*
 * Registers of the SMMUv3TestEngine, for the module and for programs that drive it from user space.
 *
 * The register area is a page of user halves of frames, then a page of the privileged halves of the same frames.
 */
#ifndef SMMULAB_ENGINE_H
#define SMMULAB_ENGINE_H

#define ENGINE_VENDOR		0x13b5
#define ENGINE_DEVICE		0xff80

#define ENGINE_PAGE		0x10000
#define ENGINE_FRAME		128
#define ENGINE_FRAMES		512

/* user half */
#define ENGINE_CMD		0x00
#define ENGINE_UCTRL		0x04
#define ENGINE_LAUNCHED		0x08	/* transactions of this command */
#define ENGINE_RETURNED		0x0c
#define ENGINE_MSIADDRESS	0x10	/* 1: send a message at the end */
#define ENGINE_MSIDATA		0x18	/* its vector */
#define ENGINE_ATTRIBUTES	0x20
#define ENGINE_SEED		0x24
#define ENGINE_BEGIN		0x28
#define ENGINE_END_INCL		0x30
#define ENGINE_STRIDE		0x38
#define ENGINE_TARGET		0x40	/* udata[0]: where a copy goes */
#define ENGINE_SUM		0x48	/* udata[1] */
#define ENGINE_FAULT		0x50	/* udata[2]: address that was refused */

/* privileged half */
#define ENGINE_PCTRL		0x00
#define ENGINE_SUBSTREAMID	0x0c

#define ENGINE_NO_SUBSTREAM	0xffffffffu

/* cmd, as written and as read */
#define ENGINE_HALTED		1u
#define ENGINE_MEMCPY		2u
#define ENGINE_RAND48		3u
#define ENGINE_SUM64		4u
#define ENGINE_MISCONFIGURED	0xfffffffeu
#define ENGINE_ERROR		0xffffffffu

/* uctrl */
#define ENGINE_RATE_SHIFT	16	/* nanoseconds of pause between pieces */

/* inner shareable, write-back, read and write allocate; for source and destination */
#define ENGINE_WRITE_BACK	0x40ff40ffu

#endif
