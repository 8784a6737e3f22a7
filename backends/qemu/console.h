/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The serial console of a QEMU: its input is a fifo, its output the log that QEMU itself appends
 * to, which is followed by inotify. So nothing that the guest prints can be lost because nobody
 * reads it, or while the daemon is away, and a guest that prints never waits for us. (With a socket
 * QEMU drops what does not fit, and logs it twice: one byte takes up hundreds in its buffer.)
 */
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CONSOLE_NAME                                                                               \
	"console" /* of the fifo pair that `-chardev pipe` wants, in the run directory */
#define CONSOLE_LOG "console.log"

typedef struct Console Console;

typedef struct ConsoleOps {
	void (*data)(void *arg, const char *data, size_t len);
	void (*at)(void *arg, uint64_t offset); /* told up to here, in the log */
	void (*room)(void *arg);		/* console_write() takes more again */
} ConsoleOps;

/* Before a start: make the fifo and the log. Acts with the rights of the caller. */
bool console_prepare(const char *run_dir, const char *data_dir, GError **err);

/*
 * Follow the log from its end. NULL and err when it cannot be opened.
 */
Console *console_open(const char *run_dir, const char *data_dir, const ConsoleOps *ops, void *arg,
		      GError **err);
/* Follow it from `past` bytes before its end; or from this offset. */
void console_rewind(Console *c, size_t past);
void console_seek(Console *c, uint64_t offset);
/* Bytes taken. */
size_t console_write(Console *c, const char *data, size_t len);
/* Read what is there now, for when its writer has ended. */
void console_catch_up(Console *c);
/* Accepts NULL. */
void console_free(Console *c);
