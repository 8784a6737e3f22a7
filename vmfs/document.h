/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bringing a new spec.yaml into force: parsed, checked by the backend, its paths looked up with the
 * writer's rights, stored; and refused as a whole if any of that fails.
 */
#pragma once

#include <glib.h>

#include "vmfs/vm.h"
#include "vmfs/yamlsplice.h"

/* fn is called once, maybe before the call returns; e (borrowed) is NULL when it is done. */
typedef void (*DocumentDone)(void *arg, const GError *e);

/*
 * Take a whole document into force. A refused one is kept in spec.yaml.rej; `invalid` is the errno
 * for one that is malformed (EINVAL, or what suits the system call better).
 */
void document_commit(Vm *vm, GBytes *text, const Caller *who, int invalid, DocumentDone fn,
		     void *arg);

/*
 * Judge a document that is still being written: fails when nothing that follows can make it good.
 * What fails is kept in spec.yaml.rej.
 */
void document_check_prefix(Vm *vm, GBytes *text, const Caller *who, DocumentDone fn, void *arg);

/*
 * Change one entry of one of the document's mappings in the user's own text; in what runs as well,
 * and first, if that is possible live. When it fails, nothing is changed, and nothing rejected.
 */
void document_change(Vm *vm, const YamlEdit *edit, const Caller *who, DocumentDone fn, void *arg);

/* Where the tree is mounted: paths below it are refused, for a VMM must not wait for vmfs. */
void document_set_mountpoint(const char *path);
const char *document_mountpoint(void); /* borrowed */
/* Pure: a clean path is the directory or below it. */
bool document_is_below(const char *path, const char *mount);
