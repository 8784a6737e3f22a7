/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The values that a spec is made of: one text to one value. Sentences begin with the value
 * ("'2GB' is not a size: ..."); the caller puts line and key in front. Pure; any thread.
 *
 * Rule for all of them, which judging unfinished documents relies on: a text that is refused is
 * refused as well with a blank and more text after it.
 */
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "vmfs/spec.h"

#define SPECVAL_MAX_TEXT 4096
#define SPECVAL_MAX_NAME 31

/* "512MiB", "2G" (= 2GiB), or a number of bytes. A bound of 0 is none. */
bool specval_size(const char *text, uint64_t min, uint64_t max, uint64_t *ret, GError **err);
/* "30s", "2m", "1h", "7d", "500ms", or a number of seconds; to milliseconds. */
bool specval_duration(const char *text, uint64_t max_ms, uint64_t *ret_ms, GError **err);
bool specval_number(const char *text, uint64_t min, uint64_t max, uint64_t *ret, GError **err);
bool specval_bool(const char *text, bool *ret, GError **err);
/* The index in the NULL-terminated choices. */
bool specval_choice(const char *text, const char *const *choices, unsigned *ret, GError **err);
/* An absolute path; with `bare`, the name of an image too. */
bool specval_path(const char *text, bool bare, char **ret, GError **err);
/* One line of text. */
bool specval_text(const char *text, char **ret, GError **err);
/* A public key as in ssh's authorized_keys, without options. Its text is in no sentence. */
bool specval_ssh_key(const char *text, char **ret, GError **err);
/* A unicast address, to lower case. */
/* "0000:01:00.0", in lower case; "1-2.3". */
bool specval_pci(const char *text, char **ret, GError **err);
bool specval_usb(const char *text, char **ret, GError **err);
bool specval_mac(const char *text, char **ret, GError **err);
/*
 * "2h": that long after `now`; or a date with its zone, "2030-01-31T18:00:00Z". To microseconds
 * since 1970.
 */
bool specval_expires(const char *text, int64_t now, int64_t *ret, GError **err);
/* "unix", or a loopback address and a port, 0 or from 5900 on: "127.0.0.1:5901". */
bool specval_vnc(const char *text, char **ret, GError **err);
/* "[HOSTADDR:]HOSTPORT:GUESTPORT[/udp]"; fills *ret, whose address the caller frees. */
bool specval_port(const char *text, SpecPort *ret, GError **err);
/* A name of a disk or a nic. */
bool specval_is_name(const char *text);
/* A name of a network that a spec can say. */
#define SPECVAL_MAX_NETWORK 63
bool specval_is_network(const char *text);
/* A name of an image. */
bool specval_is_image_name(const char *text);

/* "1.5GiB" */
char *specval_format_size(uint64_t bytes);
/* In quotes, printable and short, whatever it is. */
char *specval_quote(const char *text);
/* Append text in double quotes, as YAML and JSON have it. */
void specval_write_string(GString *out, const char *text);
/* The one of names (NULL-terminated) that was probably meant, or NULL. */
const char *specval_suggest(const char *text, const char *const *names);
