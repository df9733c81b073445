/* SPDX-License-Identifier: Apache-2.0 */
/* TLS against a real libssl client over memory: what strangers may make the server compute, and which files it takes. */
#include "check.h"
#include "xks_tls.h"
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <stdbool.h>
#include <sys/stat.h>

#define PASSPHRASE "correct horse"
#define MANY_BYTES 65536

/* A directory with a certificate and its key, the key also as a file that needs a passphrase. */
typedef struct files {
    char directory[40], certificate[64], key[64], locked_key[64];
} files;

/* A client, the server's connection, and the memory between them. */
typedef struct pair {
    SSL_CTX *client_context;
    SSL *client;
    BIO *to_client, *to_server;
    xks_tls_context *context;
    xks_tls *server;
} pair;

static void write_key(const char *path, EVP_PKEY *key, const char *passphrase)
{
    FILE *file = fopen(path, "w");
    CHECK(file != NULL);
    CHECK(PEM_write_PrivateKey(file, key, passphrase != NULL ? EVP_aes_256_cbc() : NULL, NULL, 0, NULL, (void *)(uintptr_t)passphrase) ==
          1);
    fclose(file);
}

static files make_files(void)
{
    files made = {.directory = "/tmp/xksfast-tls-XXXXXX"};
    CHECK(mkdtemp(made.directory) != NULL);
    snprintf(made.certificate, sizeof made.certificate, "%s/c", made.directory);
    snprintf(made.key, sizeof made.key, "%s/k", made.directory);
    snprintf(made.locked_key, sizeof made.locked_key, "%s/l", made.directory);
    (void)umask(077);
    EVP_PKEY *key = EVP_EC_gen("P-256");
    X509 *certificate = X509_new();
    CHECK(key != NULL && certificate != NULL);
    X509_gmtime_adj(X509_getm_notBefore(certificate), 0);
    X509_gmtime_adj(X509_getm_notAfter(certificate), 86400);
    X509_set_pubkey(certificate, key);
    CHECK(X509_sign(certificate, key, EVP_sha256()) > 0);
    FILE *file = fopen(made.certificate, "w");
    CHECK(file != NULL && PEM_write_X509(file, certificate) == 1);
    fclose(file);
    write_key(made.key, key, NULL);
    write_key(made.locked_key, key, PASSPHRASE);
    X509_free(certificate);
    EVP_PKEY_free(key);
    return made;
}

static void remove_files(const files *made)
{
    unlink(made->certificate);
    unlink(made->key);
    unlink(made->locked_key);
    rmdir(made->directory);
}

static pair connect_with(const char *groups)
{
    char error[XKS_ERROR_TEXT_BYTES];
    pair made = {.client_context = SSL_CTX_new(TLS_client_method())};
    files on_disk = make_files();
    xks_tls_config config = {.certificate_file = on_disk.certificate, .private_key_file = on_disk.key};
    CHECK_STATUS(XKS_OK, xks_tls_context_new(&config, &made.context, error));
    remove_files(&on_disk);
    CHECK_STATUS(XKS_OK, xks_tls_new(made.context, &made.server));
    CHECK(SSL_CTX_set1_groups_list(made.client_context, groups) == 1);
    made.client = SSL_new(made.client_context);
    made.to_client = BIO_new(BIO_s_mem());
    made.to_server = BIO_new(BIO_s_mem());
    SSL_set_bio(made.client, made.to_client, made.to_server);
    SSL_set_connect_state(made.client);
    return made;
}

static void disconnect(pair *made)
{
    SSL_free(made->client);
    SSL_CTX_free(made->client_context);
    xks_tls_free(made->server);
    xks_tls_context_free(made->context);
}

static void carry_to_client(pair *made)
{
    size_t len;
    const uint8_t *data = xks_tls_output(made->server, &len);
    if (len > 0) {
        CHECK(BIO_write(made->to_client, data, (int)len) == (int)len);
    }
    xks_tls_output_clear(made->server);
}

/* Takes the client's bytes; the caller frees them after the server has used them up. */
static uint8_t *take_from_client(pair *made, size_t *len)
{
    char *data;
    *len = (size_t)BIO_get_mem_data(made->to_server, &data);
    uint8_t *copy = malloc(*len + 1);
    CHECK(copy != NULL);
    memcpy(copy, data, *len);
    (void)BIO_reset(made->to_server);
    return copy;
}

/* The server's status when the handshake has ended on its side. */
static xks_status shake_hands(pair *made)
{
    for (int round = 0; round < 10; round++) {
        size_t len;
        (void)SSL_do_handshake(made->client);
        uint8_t *data = take_from_client(made, &len);
        xks_tls_input(made->server, data, len);
        xks_status status = xks_tls_handshake(made->server);
        xks_tls_input(made->server, NULL, 0);
        free(data);
        carry_to_client(made);
        if (status != XKS_WANT_MORE) {
            return status;
        }
    }
    return XKS_WANT_MORE;
}

/* What the server reads of all that the client has written: the bytes in it, and the status that ended it. */
static xks_status read_all(pair *made, size_t *bytes)
{
    uint8_t plain[16384];
    size_t len, got;
    xks_status status;
    uint8_t *data = take_from_client(made, &len);
    xks_tls_input(made->server, data, len);
    for (*bytes = 0; (status = xks_tls_read(made->server, plain, sizeof plain, &got)) == XKS_OK; *bytes += got) {
    }
    free(data);
    return status;
}

static void update_keys(pair *made, int times)
{
    for (int i = 0; i < times; i++) {
        CHECK(SSL_key_update(made->client, SSL_KEY_UPDATE_REQUESTED) == 1);
        CHECK(SSL_do_handshake(made->client) == 1);
    }
}

static void write_from_client(pair *made, size_t len)
{
    static const uint8_t ZEROS[MANY_BYTES];
    CHECK(len <= sizeof ZEROS && SSL_write(made->client, ZEROS, (int)len) == (int)len);
}

static void fast_groups_are_agreed_on(void)
{
    static const char *const GROUPS[] = {"X25519", "P-256", "P-384", "ffdhe8192:P-384"};
    for (size_t i = 0; i < sizeof GROUPS / sizeof *GROUPS; i++) {
        pair both = connect_with(GROUPS[i]);
        CHECK_STATUS(XKS_OK, shake_hands(&both));
        disconnect(&both);
    }
}

static void slow_groups_are_refused(void)
{
    static const char *const GROUPS[] = {"ffdhe2048", "ffdhe8192", "P-521", "X448"};
    for (size_t i = 0; i < sizeof GROUPS / sizeof *GROUPS; i++) {
        pair both = connect_with(GROUPS[i]);
        CHECK_STATUS(XKS_BAD_INPUT, shake_hands(&both));
        CHECK(xks_tls_error(both.server)[0] != '\0');
        disconnect(&both);
    }
}

static void a_flood_of_key_updates_ends_the_connection(void)
{
    pair both = connect_with("X25519");
    size_t bytes, answered;
    CHECK_STATUS(XKS_OK, shake_hands(&both));
    update_keys(&both, 2000);
    CHECK_STATUS(XKS_BAD_INPUT, read_all(&both, &bytes));
    CHECK(strstr(xks_tls_error(both.server), "key updates") != NULL);
    (void)xks_tls_output(both.server, &answered);
    CHECK(answered < 4096);
    disconnect(&both);
}

static void a_flood_of_key_updates_in_small_pieces_ends_it_too(void)
{
    pair both = connect_with("X25519");
    size_t bytes;
    xks_status status = XKS_WANT_MORE;
    CHECK_STATUS(XKS_OK, shake_hands(&both));
    for (int i = 0; i < 200 && status == XKS_WANT_MORE; i++) {
        update_keys(&both, 1);
        write_from_client(&both, 1);
        status = read_all(&both, &bytes);
        carry_to_client(&both);
    }
    CHECK_STATUS(XKS_BAD_INPUT, status);
    disconnect(&both);
}

static void key_updates_of_a_long_life_are_taken(void)
{
    pair both = connect_with("X25519");
    size_t bytes;
    CHECK_STATUS(XKS_OK, shake_hands(&both));
    for (int i = 0; i < 100; i++) {
        update_keys(&both, 1);
        write_from_client(&both, MANY_BYTES);
        CHECK_STATUS(XKS_WANT_MORE, read_all(&both, &bytes));
        CHECK(bytes == MANY_BYTES);
        CHECK_STATUS(XKS_OK, xks_tls_write(both.server, (const uint8_t *)"answer", 6));
        carry_to_client(&both);
        char answer[16];
        CHECK(SSL_read(both.client, answer, sizeof answer) == 6);
    }
    disconnect(&both);
}

static void a_private_key_with_a_passphrase_is_refused_without_asking(void)
{
    char error[XKS_ERROR_TEXT_BYTES] = "";
    files on_disk = make_files();
    xks_tls_context *context;
    xks_tls_config config = {.certificate_file = on_disk.certificate, .private_key_file = on_disk.locked_key};
    CHECK_STATUS(XKS_CONFIG, xks_tls_context_new(&config, &context, error));
    CHECK(context == NULL);
    CHECK(strstr(error, on_disk.locked_key) != NULL);
    CHECK(strstr(error, "passphrase") != NULL);
    CHECK(strstr(error, "openssl pkey") != NULL);
    remove_files(&on_disk);
}

static void a_private_key_that_is_a_pipe_is_refused_without_waiting(void)
{
    char error[XKS_ERROR_TEXT_BYTES] = "";
    files on_disk = make_files();
    unlink(on_disk.locked_key);
    CHECK(mkfifo(on_disk.locked_key, 0600) == 0);
    xks_tls_context *context;
    xks_tls_config config = {.certificate_file = on_disk.certificate, .private_key_file = on_disk.locked_key};
    alarm(10); /* in place of hanging */
    CHECK_STATUS(XKS_CONFIG, xks_tls_context_new(&config, &context, error));
    alarm(0);
    CHECK(strstr(error, "not a regular file") != NULL);
    remove_files(&on_disk);
}

int main(void)
{
    RUN(fast_groups_are_agreed_on);
    RUN(slow_groups_are_refused);
    RUN(a_flood_of_key_updates_ends_the_connection);
    RUN(a_flood_of_key_updates_in_small_pieces_ends_it_too);
    RUN(key_updates_of_a_long_life_are_taken);
    RUN(a_private_key_with_a_passphrase_is_refused_without_asking);
    RUN(a_private_key_that_is_a_pipe_is_refused_without_waiting);
    return 0;
}
