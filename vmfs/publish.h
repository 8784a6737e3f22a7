/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Objects that come, go and are renamed without anybody having done so through the mount. The
 * kernel tells watchers only of what it sees itself, so the notify helper does it again, through
 * the mount: its request is taken here, and the change is made at that very moment. Until then a
 * new object is not to be found, and one that is gone still is. A helper that does not come in time
 * costs the watchers their event, and nobody anything else.
 */
#pragma once

#include <stdbool.h>

#include "vmfs/node.h"

typedef enum PublishKind {
	PUBLISH_MKDIR = 'M',
	PUBLISH_SYMLINK = 'S',
	PUBLISH_RMDIR = 'D',
	PUBLISH_UNLINK = 'U',
	PUBLISH_RENAME = 'R',
} PublishKind;

/* Make the change. false: it has been overtaken, and is not to be. */
typedef bool (*PublishFn)(void *arg);

/*
 * In the directory `dir`. `other`: the target of a symlink, the new name of a rename; else NULL. fn
 * is called once, perhaps at once: while nobody is served there is nobody to tell.
 */
void publish(PublishKind kind, const NodeRef *dir, const char *name, const char *other,
	     PublishFn fn, void *arg);

/*
 * A request has come. false: it is a user's own. Else *err is what to answer. `pid` is who sent it.
 */
bool publish_take(PublishKind kind, const NodeRef *dir, const char *name, const char *other,
		  pid_t pid, int *err);

/* Whoever wished for it has seen to it: fn is not called. */
void publish_withdraw(PublishKind kind, const NodeRef *dir, const char *name);

/* Make at once what is still under way; at the end. */
void publish_stop(void);
