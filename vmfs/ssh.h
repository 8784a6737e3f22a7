/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ssh into a VM: its own key, the text of ssh_config, and whether its server answers. Loop thread
 * only.
 */
#pragma once

#include <glib.h>
#include <stdbool.h>

#include "vmfs/proc.h"

typedef struct Vm Vm;

#define SSH_PORT 22 /* of the guest */

/*
 * The VM's own key pair, in its data directory, made by ssh-keygen if there is none. fn is called
 * once, later, with the public half (one line without its end) or an error, both borrowed; unless
 * cancelled. `user` is the VM's owner, whose file it is.
 */
typedef struct SshKey SshKey;
typedef void (*SshKeyFn)(void *arg, const char *public_key, const GError *err);
SshKey *ssh_key(Vm *vm, const ProcUser *user, SshKeyFn fn, void *arg);
void ssh_key_cancel(SshKey *k); /* accepts NULL */

/* What `ssh -F` reads, of a server that "127.0.0.1:40427" leads to: from here, or from where ssh
 * has to jump first. */
char *ssh_config(Vm *vm, const char *address, const char *jump);
/* Where the keys of its servers are remembered, for as long as it runs; freed by the caller. */
char *ssh_known_hosts(Vm *vm);

/* wait/ssh: somebody waits, who looks again when vm->waiters are woken; and waits no more. */
void ssh_wait(Vm *vm);
void ssh_unwait(Vm *vm);
/* Where its server has answered; NULL: nowhere yet. */
const char *ssh_answers_at(const Vm *vm);
/* The VM's state has changed. */
void ssh_look_again(Vm *vm);
/* The VM goes from memory. */
void ssh_forget(Vm *vm);
