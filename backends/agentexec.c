/* SPDX-License-Identifier: Apache-2.0 */
#include "backends/agentexec.h"

#include "vmfs/exec.h"

#define MAX_STATUS    255
#define MAX_COMPLAINT 3072 /* bytes */

static bool is_number(const json_t *value, json_int_t min, json_int_t max)
{
	return json_is_integer(value) && json_integer_value(value) >= min &&
	       json_integer_value(value) <= max;
}

bool agentexec_pid(const json_t *result, json_int_t *ret)
{
	const json_t *pid = json_object_get(result, "pid");

	if (!is_number(pid, 2, INT32_MAX))
		return false;
	*ret = json_integer_value(pid);
	return true;
}

char *agentexec_end(const json_t *result)
{
	const json_t *code = json_object_get(result, "exitcode");
	const json_t *sig = json_object_get(result, "signal");

	if (is_number(sig, 1, EXEC_MAX_SIGNAL))
		return g_strdup_printf("signal %d", (int)json_integer_value(sig));
	if (is_number(code, 0, MAX_STATUS))
		return g_strdup_printf("exit %d", (int)json_integer_value(code));
	return NULL;
}

char *agentexec_complaint(const json_t *result)
{
	const char *text = json_string_value(json_object_get(result, "err-data"));
	g_autofree char *part = NULL;
	g_autofree guchar *data = NULL;
	gsize len = 0;

	if (!text)
		return NULL;
	/* The first words of a book will do. */
	part = g_strndup(text, MAX_COMPLAINT / 3 * 4);
	data = g_base64_decode(part, &len);
	g_autofree char *words = g_utf8_make_valid((char *)data, (gssize)len);
	g_strstrip(words);
	return *words ? g_steal_pointer(&words) : NULL;
}

json_t *agentexec_signal(json_int_t pid, int sig)
{
	/* To all that it has started, unless there is no setsid in the guest. */
	static const char script[] = "kill -\"$1\" -\"$2\" 2>/dev/null || kill -\"$1\" \"$2\"";
	char number[8], process[24];

	g_snprintf(number, sizeof number, "%d", sig);
	g_snprintf(process, sizeof process, "%" JSON_INTEGER_FORMAT, pid);
	return json_pack("{s:s,s:[s,s,s,s,s]}", "path", "/bin/sh", "arg", "-c", script, "vmfs",
			 number, process);
}
