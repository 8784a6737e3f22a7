/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A client of QEMU's own monitor.
 *
 *   qmp turn SOCKET COMMAND...   timed turns: one command after the other, then again
 *   qmp events SOCKET            a line "NANOSECONDS EVENT" for each
 */
#include "bench.h"

typedef struct Client {
	Qmp q;
	char **commands;
	int n_commands, turn;
} Client;

static Client client;

static void turn_command(void *arg)
{
	Client *c = arg;

	qmp_execute(&c->q, c->commands[c->turn++ % c->n_commands]);
}

static void follow(Qmp *q)
{
	static const char key[] = "\"event\": \"";
	char line[sizeof q->buf];

	for (;;) {
		const char *name = strstr(qmp_line(q, line), key);
		const int64_t t = now_ns();

		if (!name)
			continue;
		name += strlen(key);
		printf("%lld %.*s\n", (long long)t, (int)strcspn(name, "\""), name);
		fflush(stdout);
	}
}

int main(int argc, char *argv[])
{
	if (argc < 3)
		errx(2, "usage: qmp turn SOCKET COMMAND... | qmp events SOCKET");
	qmp_connect(&client.q, argv[2]);
	if (argc > 3 && !strcmp(argv[1], "turn")) {
		client.commands = argv + 3;
		client.n_commands = argc - 3;
		serve_turns(turn_command, &client);
		return 0;
	}
	printf("ready\n");
	fflush(stdout);
	follow(&client.q);
	return 0;
}
