/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a successor of this daemon must know and the store does not hold: requests that wait, open
 * files, operations under way. It is in a memory file that the keeper holds open (keeper.h), so it
 * outlives a crash at any instant: values are appended to a log there, and count once
 * keep_commit() has moved its end, all that came before together.
 *
 * Values are read by other versions of vmfs: a kind's number is for good, and its struct only ever
 * grows at its end (keep_copy()). Loop thread only.
 */
#pragma once

#include <glib.h>
#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum KeepKind {
	KEEP_REPLY = 1,	       /* 0: the last answer that changed something */
	KEEP_REQUEST = 2,      /* by unique: a request that waits, as the kernel sent it */
	KEEP_BEGUN = 3,	       /* by unique: that it has changed something, or an op's number */
	KEEP_HANDLE = 4,       /* by file handle */
	KEEP_TEXT = 5,	       /* by file handle: the rest of a text that is being read */
	KEEP_DOCUMENT = 6,     /* by file handle: what has been written so far */
	KEEP_SCRATCH = 7,      /* by inode number: a scratch file */
	KEEP_SCRATCH_DATA = 8, /* by inode number: what is in it */
	KEEP_AWAY = 9,	       /* by inode number: a document; until when */
	KEEP_KNOWN = 10,       /* by serial: which files the kernel knows */
	KEEP_NUDGE = 11,       /* by inode number: whose watchers are to be told */
	KEEP_VM = 12,	       /* by serial: what is only in memory; 0: of all */
	KEEP_EVENTS = 13,      /* by serial: the events that readers may still get; 0: of all */
	KEEP_CONSOLE = 14,     /* by serial: where console.log is in the console's stream */
	KEEP_OP = 15,	       /* by number: an operation */
	KEEP_NETWORK = 16,     /* by number: what is known of a host's network */
	KEEP_KINDS,
} KeepKind;

#define KEEP_FORMAT   1
#define KEEP_INIT_MAX 1024
#define KEEP_SLOT     ((1u << 20) + (64u << 10)) /* at least what libfuse reads at once */

/* The head of the memory file. Its place and fields are part of the format. */
typedef struct KeepHead {
	char magic[8];
	uint32_t format;
	/* By the keeper: */
	uint32_t generation; /* of daemons, from 1 */
	int32_t keeper_pid;
	uint32_t crashed; /* the former daemon ended by itself, not by SIGKILL or an order */
	char mountpoint[PATH_MAX], state_dir[PATH_MAX], runtime_dir[PATH_MAX]; /* absolute */
	/* By the daemon: */
	uint32_t init_len;
	uint32_t unused;
	char init[KEEP_INIT_MAX] __attribute__((aligned(8))); /* by which the kernel began */
	uint64_t current;   /* unique of the request that is being handled; 0: none */
	uint64_t suspect;   /* one during which a daemon died */
	uint32_t deaths;    /* how often */
	uint32_t area;	    /* which log holds */
	uint64_t end[2];    /* of the logs, as far as they count */
	uint64_t begun;	    /* operations numbered so far */
	int32_t helpers[4]; /* the last notify helpers: of former daemons as well */
	uint64_t handles;   /* of open files, numbered so far */
} KeepHead;

/* Lay out an empty memory file; for the keeper. Its descriptor, or -1 and errno. */
int keep_create(KeepHead **ret);

/* Its head, in another keeper; NULL when it is not one. */
KeepHead *keep_open(int fd);
/* Whether a daemon has it attached. */
bool keep_is_served(int fd);
/*
 * Take a memory file over, until this process ends. EPROTO when its format is another; EBUSY when
 * another daemon has it, or a keeper that is not our parent.
 */
bool keep_attach(int fd, GError **err);
/* From now on nothing is written any more: what is freed at the end is the successor's. */
void keep_detach(void);
KeepHead *keep_head(void); /* NULL: detached */
/* Where requests are received: so that none is lost between read(2) and the log. */
char *keep_slot(void);

void keep_set(KeepKind kind, uint64_t key, const void *data, size_t len);
void keep_append(KeepKind kind, uint64_t key, const void *data, size_t len);
void keep_unset(KeepKind kind, uint64_t key);
/* How many changes there have been: that it is the same tells that there was none since. */
uint64_t keep_changes(void);
void keep_commit(void);

bool keep_has(KeepKind kind, uint64_t key);
size_t keep_len(KeepKind kind, uint64_t key); /* 0 when there is none */
/* A copy, or NULL. */
GBytes *keep_get(KeepKind kind, uint64_t key);
/* Call fn with each value of a kind, by ascending keys; it may change or unset any. */
void keep_each(KeepKind kind, void (*fn)(uint64_t key, GBytes *value));

/* Fill in a struct from a value that an older or newer version wrote; what is missing is zero. */
void keep_copy(void *to, size_t size, GBytes *value);
