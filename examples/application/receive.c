/* Take TLS sessions from handfast in C, with libc alone: an echo server without a TLS library.
 *
 *     cc -o receive receive.c && ./receive /run/echo/tls.sock handfast
 *
 * handfast has `target: handoff:/run/echo/tls.sock` and `kernel-tls: on`, so that the kernel seals
 * and opens the records: the descriptor reads and writes plain bytes. The second argument is the
 * user that handfast runs as. docs/applications.md describes the message.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <pwd.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define MAX_MESSAGE (192 * 1024)
#define READS_PLAIN 1
#define WRITES_PLAIN 2
#define ENDED 4

#define SOL_TLS 282
#define TLS_SET_RECORD_TYPE 1
#define TLS_GET_RECORD_TYPE 2
#define ALERT 21

struct head {
	char magic[8];
	uint16_t version, flags;
	uint32_t facts, data, session;
} __attribute__((packed)); /* all numbers are big-endian */

union control {
	struct cmsghdr align;
	char room[CMSG_SPACE(4 * sizeof(int))];
};

static int fail(const char *what)
{
	perror(what);
	return -1;
}

static int trusted(int connection, uid_t handfast)
{
	struct ucred peer;
	socklen_t length = sizeof peer;

	if (getsockopt(connection, SOL_SOCKET, SO_PEERCRED, &peer, &length) < 0)
		return 0;
	return peer.uid == 0 || peer.uid == geteuid() || peer.uid == handfast;
}

/* Receive the message into `buffer`; give the client's socket, or -1. */
static int receive(int connection, char *buffer, size_t *length)
{
	union control control;
	struct iovec part = {buffer, MAX_MESSAGE};
	struct msghdr message = {
		.msg_iov = &part, .msg_iovlen = 1,
		.msg_control = &control, .msg_controllen = sizeof control,
	};
	struct cmsghdr *each;
	int found[4], count = 0;
	ssize_t size = recvmsg(connection, &message, MSG_CMSG_CLOEXEC);

	if (size < 0)
		return fail("recvmsg");
	for (each = CMSG_FIRSTHDR(&message); each; each = CMSG_NXTHDR(&message, each))
		if (each->cmsg_level == SOL_SOCKET && each->cmsg_type == SCM_RIGHTS) {
			count = (each->cmsg_len - CMSG_LEN(0)) / sizeof(int);
			memcpy(found, CMSG_DATA(each), count * sizeof(int));
		}
	*length = size;
	if (count == 1 && !(message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)))
		return found[0];
	while (count)
		close(found[--count]);
	return -1;
}

/* Check the head, and turn its numbers into this machine's; 0 if it can be used. */
static int understand(struct head *head, size_t length)
{
	if (length < sizeof *head || memcmp(head->magic, "handfast", 8) || ntohs(head->version) != 1)
		return -1;
	head->flags = ntohs(head->flags);
	head->facts = ntohl(head->facts);
	head->data = ntohl(head->data);
	head->session = ntohl(head->session);
	if ((uint64_t)head->facts + head->data + head->session + sizeof *head != length)
		return -1;
	/* Without the kernel we would have to open and seal records ourselves. */
	return head->flags & READS_PLAIN && head->flags & WRITES_PLAIN ? 0 : -1;
}

static int write_all(int client, const char *data, size_t length)
{
	while (length) {
		ssize_t count = send(client, data, length, MSG_NOSIGNAL);
		if (count < 0)
			return fail("send");
		data += count;
		length -= count;
	}
	return 0;
}

/* Read data; 0 at close_notify, and -1 for everything that is no end: a FIN without it, too. */
static ssize_t read_some(int client, char *buffer, size_t room)
{
	union control control;
	struct iovec part = {buffer, room};
	struct msghdr message = {
		.msg_iov = &part, .msg_iovlen = 1,
		.msg_control = &control, .msg_controllen = sizeof control,
	};
	struct cmsghdr *kind;
	ssize_t count;

	do { /* with room for the type of the record; without, one that is no data gives EIO */
		message.msg_controllen = sizeof control;
		count = recvmsg(client, &message, 0);
		if (count < 0)
			return fail("recvmsg");
		kind = CMSG_FIRSTHDR(&message);
		if (!kind || kind->cmsg_level != SOL_TLS || kind->cmsg_type != TLS_GET_RECORD_TYPE) {
			fprintf(stderr, "closed without close_notify\n");
			return -1;
		}
		if (*CMSG_DATA(kind) == ALERT)
			return count == 2 && buffer[1] == 0 ? 0 : -1; /* AlertDescription 0 */
		if (*CMSG_DATA(kind) != 23) { /* a KeyUpdate, say: see the documentation */
			fprintf(stderr, "record of type %d\n", *CMSG_DATA(kind));
			return -1;
		}
	} while (!count); /* a record without data */
	return count;
}

/* Say the end: a close_notify alert, then FIN. */
static int finish(int client)
{
	union control control = {0};
	char close_notify[2] = {1, 0};
	struct iovec part = {close_notify, sizeof close_notify};
	struct msghdr message = {
		.msg_iov = &part, .msg_iovlen = 1,
		.msg_control = &control, .msg_controllen = CMSG_SPACE(1),
	};
	struct cmsghdr *kind = CMSG_FIRSTHDR(&message);

	kind->cmsg_level = SOL_TLS;
	kind->cmsg_type = TLS_SET_RECORD_TYPE;
	kind->cmsg_len = CMSG_LEN(1);
	*CMSG_DATA(kind) = ALERT;
	if (sendmsg(client, &message, MSG_NOSIGNAL) < 0)
		return fail("sendmsg");
	return shutdown(client, SHUT_WR);
}

static void serve(int client, const char *data, size_t length, int ended)
{
	static char buffer[1 << 14];
	ssize_t count = length;

	if (write_all(client, data, length) < 0)
		return;
	while (!ended && (count = read_some(client, buffer, sizeof buffer)) > 0)
		if (write_all(client, buffer, count) < 0)
			return;
	if (!ended && count < 0)
		return; /* closing without close_notify: the client sees an error */
	if (finish(client) == 0)
		while (recv(client, buffer, sizeof buffer, 0) > 0)
			; /* so that closing sends no RST, which could overtake our last bytes */
}

static void take(int connection)
{
	static char message[MAX_MESSAGE];
	struct head *head = (struct head *)message;
	char *facts = message + sizeof *head;
	size_t length;
	int client = receive(connection, message, &length);

	if (client < 0)
		return;
	/* Only what can be used is confirmed; of the rest, handfast closes the connection. */
	if (understand(head, length) == 0 && send(connection, "taken\n", 6, MSG_NOSIGNAL) == 6) {
		printf("%.*s\n", (int)head->facts, facts);
		fflush(stdout);
		fcntl(client, F_SETFL, 0); /* it does not block when it comes */
		serve(client, facts + head->facts, head->data, head->flags & ENDED);
	}
	close(client);
}

static int listen_at(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int listening = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	if (strlen(path) >= sizeof address.sun_path) {
		errno = ENAMETOOLONG;
		return -1;
	}
	strcpy(address.sun_path, path);
	unlink(path);
	umask(0117); /* rw-rw----: give it a group that handfast's user is in */
	if (listening < 0 || bind(listening, (struct sockaddr *)&address, sizeof address) < 0 ||
	    listen(listening, 128) < 0)
		return -1;
	return listening;
}

int main(int count, char **arguments)
{
	struct passwd *handfast = count > 2 ? getpwnam(arguments[2]) : NULL;
	int listening, connection;

	if (count < 2) {
		fprintf(stderr, "usage: %s PATH [USER]\n", arguments[0]);
		return 2;
	}
	if ((listening = listen_at(arguments[1])) < 0) {
		perror(arguments[1]);
		return 1;
	}
	signal(SIGCHLD, SIG_IGN); /* nobody waits for them */
	while ((connection = accept4(listening, NULL, NULL, SOCK_CLOEXEC)) >= 0) {
		/* A process for each: the next one must not wait for its confirmation. */
		if (trusted(connection, handfast ? handfast->pw_uid : 0) && fork() == 0) {
			close(listening);
			take(connection);
			_exit(0);
		}
		close(connection);
	}
	perror("accept");
	return 1;
}
