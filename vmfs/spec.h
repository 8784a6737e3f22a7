/* SPDX-License-Identifier: Apache-2.0 */
/*
 * spec.yaml: text to an immutable, counted structure, and the questions that are asked of it. No
 * policy and no I/O here; only loop thread code takes references, the fields may be read anywhere.
 */
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SPEC_MAX_TEXT	(256u << 10) /* bytes of a document */
#define SPEC_MAX_DEPTH	16
#define SPEC_MAX_ITEMS	64 /* disks, nics, shares, ports of a nic, each */
#define SPEC_MAX_CPUS	1024
#define SPEC_MAX_MEMORY (64ull << 40)

typedef enum SpecAccel { ACCEL_AUTO, ACCEL_KVM, ACCEL_TCG } SpecAccel;
typedef enum SpecFirmware { FIRMWARE_BIOS, FIRMWARE_UEFI } SpecFirmware;
typedef enum SpecMachine { MACHINE_Q35, MACHINE_MICROVM } SpecMachine;

typedef enum SpecBus { BUS_VIRTIO, BUS_SCSI } SpecBus;
typedef enum SpecShareType { SHARE_AUTO, SHARE_VIRTIOFS, SHARE_9P } SpecShareType;

typedef enum SpecRestart { RESTART_NEVER, RESTART_ON_CRASH, RESTART_ALWAYS } SpecRestart;
typedef enum SpecDisplay { DISPLAY_AUTO, DISPLAY_NONE, DISPLAY_VGA, DISPLAY_VIRTIO } SpecDisplay;

typedef struct SpecDisk {
	char *name;
	char *image;   /* base of a private overlay: a path, or a name in .vmfs/images; or NULL */
	char *file;    /* that file itself: a path; or NULL. At most one of both is set */
	char *format;  /* "raw", "qcow2" or NULL: not given */
	uint64_t size; /* bytes; 0: as large as the image. Alone: of an empty private disk */
	SpecBus bus;
	bool readonly;
} SpecDisk;

typedef struct SpecPort {
	char *address;	    /* host address to listen on, "127.0.0.1" unless given */
	uint16_t host_port; /* 0: the system picks */
	uint16_t guest_port;
	bool udp;
} SpecPort;

typedef struct SpecNic {
	char *name;
	char *network;	  /* "user", or the name of one of its host's */
	char *mac;	  /* or NULL: derived from the VM's id */
	GPtrArray *ports; /* of SpecPort */
} SpecNic;

/* For cloud-init in the guest. Secrets may be in it. */
typedef struct SpecCloudInit {
	bool given;			  /* false: the rest is unset */
	char *user_data, *network_config; /* as cloud-init reads them; or NULL */
	GHashTable *meta_data;		  /* char* to char*; NULL if none */
	GPtrArray *ssh_keys;		  /* of char*: "ssh-ed25519 AAAA... comment" */
} SpecCloudInit;

typedef struct SpecShare {
	char *name; /* the guest mounts it by that tag */
	char *path; /* a directory of the host */
	SpecShareType type;
	bool readonly;
} SpecShare;

/* One of the host's; exactly one of both is set. */
typedef struct SpecDevice {
	char *name;
	char *pci; /* "0000:01:00.0" */
	char *usb; /* "1-2.3": bus, and ports on the way */
} SpecDevice;

typedef struct Spec {
	unsigned refs;
	GBytes *text;  /* the user's own document */
	char *backend; /* or NULL: the first usable */
	char *host;    /* where it is to be made; or NULL: on this one */
	char *from;    /* "VM/snapshots/NAME": what it begins as (clone.h); or NULL */
	unsigned cpus;
	uint64_t memory;     /* bytes, a multiple of 1 MiB */
	unsigned max_cpus;   /* what it can be given while it runs; 0: it stays as it is */
	uint64_t max_memory; /* likewise */
	bool shared_memory;  /* as virtiofs needs it: shares can come while it runs */
	SpecAccel accel;
	SpecMachine machine;
	SpecFirmware firmware;
	SpecDisplay display; /* ask spec_display() */
	char *vnc;	     /* "unix", "ADDRESS:PORT" or NULL */
	char *ssh_user;
	char *kernel, *initrd, *cmdline;	    /* kernel NULL: boot the first disk */
	GPtrArray *disks, *nics, *shares, *devices; /* in the order of the document */
	SpecCloudInit cloud_init;
	uint64_t stop_timeout_ms;
	bool autostart;
	SpecRestart restart;
	uint64_t restart_delay_ms;
	char *expires;	 /* see specval_expires(); or NULL */
	GHashTable *sim; /* char* to char*: options of the sim backend; NULL if none */
} Spec;

/*
 * What this host has, for documents that are parsed from now on: memory above max_memory bytes and
 * cpus above max_cpus are refused. 0: only the format's own limits, as at first.
 */
void spec_set_limits(unsigned max_cpus, uint64_t max_memory);

/* The meaning of an empty document: a new reference to a singleton. */
Spec *spec_default(void);
Spec *spec_ref(Spec *s);
void spec_unref(Spec *s);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Spec, spec_unref)

/* EINVAL (E2BIG over SPEC_MAX_TEXT) with "line 7: disks.root: unknown key 'sze', did you mean
 * 'size'?". */
Spec *spec_parse(const char *text, size_t len, GError **err);

/*
 * Judge a document that is still being written: false and err when no continuation can make it
 * good. Looks at the complete lines only.
 */
bool spec_parse_prefix(const char *text, size_t len, GError **err);

/* Keys ("memory", "disks.root.size", "nics.eth0") in which `want` differs from `have`. */
GPtrArray *spec_diff(const Spec *want, const Spec *have);

/*
 * `have`, but with the one difference `key` (of spec_diff()) as `want` has it: a new reference.
 * NULL when such a spec makes no sense.
 */
Spec *spec_merge(const Spec *have, const Spec *want, const char *key);
/*
 * `have`, whose text has none of them, with the keys of `core` that spec_diff() does not look at,
 * for they are not of the machine; but for one key. A new reference, or NULL.
 */
Spec *spec_with_core(const Spec *have, const Spec *core, const char *but);
/* Of the text of such a spec: not bound by what the host has now, nor by SPEC_MAX_TEXT. */
Spec *spec_restore(const char *text, size_t len, GError **err);

/* A key at the top of the document that tells what runs: spec_diff() looks at it. */
bool spec_is_of_machine(const char *key);

/* The object (SpecDisk, SpecNic, SpecShare, SpecDevice) that "disks.data" names; NULL: there is
 * none. */
const void *spec_named(const Spec *s, const char *key);

/* What `display: auto` stands for. */
SpecDisplay spec_display(const Spec *s);

/* A host path that the document names. */
typedef struct SpecPath {
	char *key;  /* "disks.root.image" */
	char *path; /* absolute, or the name of an image */
	bool write; /* must be writable as well */
	bool dir;   /* must be a directory; else a file or a block device */
	unsigned line;
} SpecPath;
GPtrArray *spec_paths(const Spec *s); /* of SpecPath, owned by the caller */

/* One line a key: "KEY  TYPE  DOC", for help and the manual. */
void spec_help(GString *out);
