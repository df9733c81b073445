/* SPDX-License-Identifier: Apache-2.0 */
#include "xks_tls.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define SUITES_1_3 "TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"
#define SUITES_1_2 "ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384"
#define GROUPS "X25519:P-256:P-384" /* at most 1 ms each; libssl's own list ends in ffdhe8192, which costs the server 120 */
#define MAX_CLIENT_CHAIN_BYTES 32768
#define FREE_KEY_UPDATES 16U          /* of a connection; the peer pays nothing for one, and we some 20 us */
#define BYTES_PER_KEY_UPDATE 65536U   /* that are read for each further one: a long-lived peer may renew its keys */
#define FIRST_OUTPUT_BYTES 4096
#define LARGEST_OUTPUT_BYTES (4U * 1024U * 1024U)
#define MAX_COMMON_NAME_BYTES 256

struct xks_tls_context {
    unsigned references; /* the owner's, and one per connection */
    SSL_CTX *ssl;
    BIO_METHOD *method;
    char common_name[MAX_COMMON_NAME_BYTES]; /* "" without mTLS */
};

struct xks_tls {
    xks_tls_context *context;
    SSL *ssl;
    const uint8_t *input; /* borrowed */
    size_t input_len;
    uint8_t *output;
    size_t output_len;
    size_t output_capacity;
    bool refused_client;
    uint64_t key_updates; /* received */
    uint64_t read_bytes;  /* of plaintext */
    char error[XKS_ERROR_TEXT_BYTES];
};

/* --- key updates */

static void count_key_updates(int sent, int version, int content_type, const void *message, size_t len, SSL *ssl, void *unused)
{
    (void)version;
    (void)unused;
    if (sent == 0 && content_type == SSL3_RT_HANDSHAKE && len > 0 && *(const uint8_t *)message == SSL3_MT_KEY_UPDATE) {
        xks_tls *tls = SSL_get_app_data(ssl);
        tls->key_updates++;
    }
}

static bool too_many_key_updates(const xks_tls *tls)
{
    return tls->key_updates > FREE_KEY_UPDATES + tls->read_bytes / BYTES_PER_KEY_UPDATE;
}

/* --- the BIO between libssl and our two buffers */

static int bio_read(BIO *bio, char *out, size_t len, size_t *read_len)
{
    xks_tls *tls = BIO_get_data(bio);
    BIO_clear_retry_flags(bio);
    if (too_many_key_updates(tls)) {
        return 0; /* for good: libssl would take any number of them in one call */
    }
    if (tls->input_len == 0) {
        BIO_set_retry_read(bio);
        return 0;
    }
    size_t taken = len < tls->input_len ? len : tls->input_len;
    memcpy(out, tls->input, taken);
    tls->input += taken;
    tls->input_len -= taken;
    *read_len = taken;
    return 1;
}

static int bio_write(BIO *bio, const char *data, size_t len, size_t *written)
{
    xks_tls *tls = BIO_get_data(bio);
    BIO_clear_retry_flags(bio);
    if (tls->output_capacity - tls->output_len < len) {
        size_t capacity = tls->output_capacity == 0 ? FIRST_OUTPUT_BYTES : tls->output_capacity;
        while (capacity - tls->output_len < len && capacity <= LARGEST_OUTPUT_BYTES) {
            capacity *= 2;
        }
        uint8_t *grown = capacity <= LARGEST_OUTPUT_BYTES ? realloc(tls->output, capacity) : NULL;
        if (grown == NULL) {
            return 0;
        }
        tls->output = grown;
        tls->output_capacity = capacity;
    }
    memcpy(tls->output + tls->output_len, data, len);
    tls->output_len += len;
    *written = len;
    return 1;
}

static long bio_control(BIO *bio, int command, long number, void *pointer)
{
    (void)bio;
    (void)number;
    (void)pointer;
    return command == BIO_CTRL_FLUSH ? 1 : 0;
}

static BIO_METHOD *make_bio_method(void)
{
    BIO_METHOD *method = BIO_meth_new(BIO_TYPE_SOURCE_SINK | BIO_get_new_index(), "xksfast memory");
    if (method != NULL) {
        BIO_meth_set_read_ex(method, bio_read);
        BIO_meth_set_write_ex(method, bio_write);
        BIO_meth_set_ctrl(method, bio_control);
    }
    return method;
}

/* --- client certificates */

/* Why the certificate is refused, for the log; libssl is told "application verification", which ends the handshake with the alert
 * handshake_failure whatever the reason: the peer learns no more than that. */
static int refuse_client(X509_STORE_CTX *store, xks_tls *tls, const char *reason, X509 *certificate)
{
    char subject[200] = "none";
    if (certificate != NULL) {
        (void)X509_NAME_oneline(X509_get_subject_name(certificate), subject, sizeof subject);
    }
    snprintf(tls->error, sizeof tls->error, "client certificate refused: %s; subject %s", reason, subject);
    tls->refused_client = true;
    X509_STORE_CTX_set_error(store, X509_V_ERR_APPLICATION_VERIFICATION);
    return 0;
}

/* Whether the certificate's subject has exactly one CN and it is `wanted`, byte for byte. */
static bool common_name_is(X509 *certificate, const char *wanted)
{
    const X509_NAME *subject = X509_get_subject_name(certificate);
    int at = X509_NAME_get_index_by_NID(subject, NID_commonName, -1);
    if (at < 0 || X509_NAME_get_index_by_NID(subject, NID_commonName, at) >= 0) {
        return false;
    }
    unsigned char *text = NULL;
    int len = ASN1_STRING_to_UTF8(&text, X509_NAME_ENTRY_get_data(X509_NAME_get_entry(subject, at)));
    bool same = len >= 0 && (size_t)len == strlen(wanted) && memcmp(text, wanted, (size_t)len) == 0;
    OPENSSL_free(text);
    return same;
}

static int verify_client(X509_STORE_CTX *store, void *unused)
{
    (void)unused;
    SSL *ssl = X509_STORE_CTX_get_ex_data(store, SSL_get_ex_data_X509_STORE_CTX_idx());
    xks_tls *tls = SSL_get_app_data(ssl);
    X509 *certificate = X509_STORE_CTX_get0_cert(store);
    if (X509_verify_cert(store) != 1) {
        return refuse_client(store, tls, X509_verify_cert_error_string(X509_STORE_CTX_get_error(store)), certificate);
    }
    if (!common_name_is(certificate, tls->context->common_name)) {
        return refuse_client(store, tls, "its common name is not the configured client_common_name", certificate);
    }
    return 1;
}

/* --- contexts */

static xks_status config_error(char *error, const char *path, const char *what)
{
    unsigned long code = ERR_peek_last_error();
    const char *reason = code != 0 ? ERR_reason_error_string(code) : NULL;
    snprintf(error, XKS_ERROR_TEXT_BYTES, "%s: %s%s%s", path, what, reason != NULL ? ": " : "", reason != NULL ? reason : "");
    ERR_clear_error();
    return XKS_CONFIG;
}

static xks_status check_readable(const char *path, bool secret, char *error)
{
    struct stat about;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe must not make us wait */
    if (fd < 0 || fstat(fd, &about) != 0 || !S_ISREG(about.st_mode)) {
        snprintf(error, XKS_ERROR_TEXT_BYTES, "%s: cannot be read: %s", path, fd < 0 ? strerror(errno) : "not a regular file");
        if (fd >= 0) {
            close(fd);
        }
        return XKS_CONFIG;
    }
    close(fd);
    if (secret && (about.st_mode & 077) != 0) {
        snprintf(error, XKS_ERROR_TEXT_BYTES, "%s: holds a private key and is open to others (mode %04o): run chmod 600 %s", path,
                 (unsigned)(about.st_mode & 07777), path);
        return XKS_CONFIG;
    }
    return XKS_OK;
}

static int choose_alpn(SSL *ssl, const unsigned char **out, unsigned char *out_len, const unsigned char *in, unsigned in_len,
                       void *unused)
{
    static const unsigned char HTTP_1_1[] = {8, 'h', 't', 't', 'p', '/', '1', '.', '1'};
    (void)ssl;
    (void)unused;
    if (SSL_select_next_proto((unsigned char **)(uintptr_t)out, out_len, HTTP_1_1, sizeof HTTP_1_1, in, in_len) ==
        OPENSSL_NPN_NEGOTIATED) {
        return SSL_TLSEXT_ERR_OK;
    }
    return SSL_TLSEXT_ERR_NOACK;
}

/* libssl's own callback asks on the terminal, and the caller is an event loop. */
static int note_that_a_passphrase_is_wanted(char *out, int capacity, int writing, void *wanted)
{
    (void)out;
    (void)capacity;
    (void)writing;
    if (wanted != NULL) {
        *(bool *)wanted = true;
    }
    return -1;
}

static xks_status load_private_key(xks_tls_context *context, const char *path, char *error)
{
    bool passphrase_wanted = false;
    SSL_CTX_set_default_passwd_cb(context->ssl, note_that_a_passphrase_is_wanted);
    SSL_CTX_set_default_passwd_cb_userdata(context->ssl, &passphrase_wanted);
    bool loaded = SSL_CTX_use_PrivateKey_file(context->ssl, path, SSL_FILETYPE_PEM) == 1;
    SSL_CTX_set_default_passwd_cb_userdata(context->ssl, NULL);
    if (passphrase_wanted) {
        ERR_clear_error();
        snprintf(error, XKS_ERROR_TEXT_BYTES,
                 "%s: needs a passphrase, and nobody is there to type it: write it without one "
                 "(umask 077; openssl pkey -in %s -out plain.key) and name that file",
                 path, path);
        return XKS_CONFIG;
    }
    if (!loaded || SSL_CTX_check_private_key(context->ssl) != 1) {
        return config_error(error, path, "is not the private key of the certificate");
    }
    return XKS_OK;
}

static xks_status load_certificate(xks_tls_context *context, const xks_tls_config *config, char *error)
{
    xks_status status = check_readable(config->certificate_file, false, error);
    if (status == XKS_OK) {
        status = check_readable(config->private_key_file, true, error);
    }
    if (status != XKS_OK) {
        return status;
    }
    ERR_clear_error();
    if (SSL_CTX_use_certificate_chain_file(context->ssl, config->certificate_file) != 1) {
        return config_error(error, config->certificate_file, "is not a PEM certificate chain");
    }
    return load_private_key(context, config->private_key_file, error);
}

static xks_status require_client_certificate(xks_tls_context *context, const xks_tls_config *config, char *error)
{
    if (config->client_common_name == NULL || config->client_common_name[0] == '\0' ||
        strlen(config->client_common_name) >= MAX_COMMON_NAME_BYTES) {
        snprintf(error, XKS_ERROR_TEXT_BYTES, "client_ca needs client_common_name, the one subject CN that is let in");
        return XKS_CONFIG;
    }
    xks_status status = check_readable(config->client_ca_file, false, error);
    if (status != XKS_OK) {
        return status;
    }
    STACK_OF(X509_NAME) *names = SSL_load_client_CA_file(config->client_ca_file);
    if (names == NULL || SSL_CTX_load_verify_locations(context->ssl, config->client_ca_file, NULL) != 1) {
        sk_X509_NAME_pop_free(names, X509_NAME_free);
        return config_error(error, config->client_ca_file, "holds no CA certificate in PEM");
    }
    SSL_CTX_set_client_CA_list(context->ssl, names);
    snprintf(context->common_name, sizeof context->common_name, "%s", config->client_common_name);
    SSL_CTX_set_verify(context->ssl, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
    SSL_CTX_set_cert_verify_callback(context->ssl, verify_client, NULL);
    SSL_CTX_set_max_cert_list(context->ssl, MAX_CLIENT_CHAIN_BYTES);
    return XKS_OK;
}

static bool set_rules(SSL_CTX *ssl)
{
    SSL_CTX_set_options(ssl, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION | SSL_OP_NO_TICKET | SSL_OP_CIPHER_SERVER_PREFERENCE |
                                 SSL_OP_CLEANSE_PLAINTEXT);
    SSL_CTX_set_msg_callback(ssl, count_key_updates);
    SSL_CTX_set_session_cache_mode(ssl, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_mode(ssl, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    SSL_CTX_set_alpn_select_cb(ssl, choose_alpn, NULL);
    return SSL_CTX_set_min_proto_version(ssl, TLS1_2_VERSION) == 1 && SSL_CTX_set_ciphersuites(ssl, SUITES_1_3) == 1 &&
           SSL_CTX_set_cipher_list(ssl, SUITES_1_2) == 1 && SSL_CTX_set_num_tickets(ssl, 0) == 1 &&
           SSL_CTX_set_max_early_data(ssl, 0) == 1 && SSL_CTX_set1_groups_list(ssl, GROUPS) == 1;
}

xks_status xks_tls_context_new(const xks_tls_config *config, xks_tls_context **out, char *error)
{
    xks_tls_context *made = calloc(1, sizeof *made);
    *out = NULL;
    if (made == NULL) {
        snprintf(error, XKS_ERROR_TEXT_BYTES, "no memory for a TLS context");
        return XKS_SYSTEM;
    }
    made->references = 1;
    made->method = make_bio_method();
    made->ssl = SSL_CTX_new(TLS_server_method());
    xks_status status = XKS_SYSTEM;
    if (made->method == NULL || made->ssl == NULL || !set_rules(made->ssl)) {
        snprintf(error, XKS_ERROR_TEXT_BYTES, "libssl cannot be set up: does its configuration forbid our cipher suites?");
        goto out;
    }
    status = load_certificate(made, config, error);
    if (status == XKS_OK && config->client_ca_file != NULL) {
        status = require_client_certificate(made, config, error);
    }
out:
    if (status != XKS_OK) {
        xks_tls_context_free(made);
        return status;
    }
    *out = made;
    return XKS_OK;
}

void xks_tls_context_free(xks_tls_context *context)
{
    if (context == NULL || --context->references > 0) {
        return;
    }
    SSL_CTX_free(context->ssl);
    BIO_meth_free(context->method);
    free(context);
}

/* --- connections */

xks_status xks_tls_new(xks_tls_context *context, xks_tls **out)
{
    xks_tls *made = calloc(1, sizeof *made);
    *out = NULL;
    if (made == NULL) {
        return XKS_SYSTEM;
    }
    made->ssl = SSL_new(context->ssl);
    BIO *bio = BIO_new(context->method);
    if (made->ssl == NULL || bio == NULL) {
        SSL_free(made->ssl);
        BIO_free(bio);
        free(made);
        return XKS_SYSTEM;
    }
    BIO_set_data(bio, made);
    BIO_set_init(bio, 1);
    SSL_set_bio(made->ssl, bio, bio); /* the SSL owns it now */
    SSL_set_app_data(made->ssl, made);
    SSL_set_accept_state(made->ssl);
    made->context = context;
    context->references++;
    *out = made;
    return XKS_OK;
}

void xks_tls_free(xks_tls *tls)
{
    if (tls == NULL) {
        return;
    }
    SSL_free(tls->ssl);
    xks_tls_context_free(tls->context);
    free(tls->output);
    free(tls);
}

void xks_tls_input(xks_tls *tls, const uint8_t *data, size_t len)
{
    tls->input = data;
    tls->input_len = len;
}

/* What libssl's last result means. Only after a call that did not succeed. */
static xks_status explain(xks_tls *tls, int result)
{
    int kind = SSL_get_error(tls->ssl, result);
    if (kind == SSL_ERROR_WANT_READ) {
        return XKS_WANT_MORE;
    }
    if (kind == SSL_ERROR_ZERO_RETURN) {
        return XKS_CLOSED;
    }
    if (tls->refused_client) {
        ERR_clear_error();
        return XKS_NOT_AUTHENTIC;
    }
    if (too_many_key_updates(tls)) {
        ERR_clear_error();
        snprintf(tls->error, sizeof tls->error, "the peer sent more key updates than requests could need");
        return XKS_BAD_INPUT;
    }
    unsigned long code = ERR_peek_last_error();
    const char *reason = code != 0 ? ERR_reason_error_string(code) : NULL;
    snprintf(tls->error, sizeof tls->error, "%s", reason != NULL ? reason : "the peer broke the protocol");
    bool no_certificate = ERR_GET_REASON(code) == SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE;
    ERR_clear_error();
    return no_certificate ? XKS_NOT_AUTHENTIC : XKS_BAD_INPUT;
}

xks_status xks_tls_handshake(xks_tls *tls)
{
    tls->error[0] = '\0';
    ERR_clear_error();
    int result = SSL_do_handshake(tls->ssl);
    return result == 1 ? XKS_OK : explain(tls, result);
}

xks_status xks_tls_read(xks_tls *tls, uint8_t *out, size_t capacity, size_t *out_len)
{
    tls->error[0] = '\0';
    if (tls->input_len == 0 && SSL_has_pending(tls->ssl) == 0) {
        return XKS_WANT_MORE; /* libssl would find out for some 0.7 us more */
    }
    ERR_clear_error();
    int result = SSL_read_ex(tls->ssl, out, capacity, out_len);
    if (result != 1) {
        return explain(tls, result);
    }
    tls->read_bytes += *out_len;
    return XKS_OK;
}

xks_status xks_tls_write(xks_tls *tls, const uint8_t *data, size_t len)
{
    tls->error[0] = '\0';
    while (len > 0) {
        size_t written = 0;
        ERR_clear_error();
        int result = SSL_write_ex(tls->ssl, data, len, &written);
        if (result != 1) {
            xks_status status = explain(tls, result);
            return status == XKS_WANT_MORE ? XKS_BUG : status; /* without renegotiation a write waits for nothing */
        }
        data += written;
        len -= written;
    }
    return XKS_OK;
}

void xks_tls_shutdown(xks_tls *tls)
{
    ERR_clear_error();
    if (SSL_is_init_finished(tls->ssl)) {
        (void)SSL_shutdown(tls->ssl);
    }
    ERR_clear_error();
}

const uint8_t *xks_tls_output(const xks_tls *tls, size_t *len)
{
    *len = tls->output_len;
    return tls->output;
}

void xks_tls_output_clear(xks_tls *tls)
{
    tls->output_len = 0;
}

const char *xks_tls_error(const xks_tls *tls)
{
    return tls->error;
}

const char *xks_tls_version(const xks_tls *tls)
{
    return SSL_get_version(tls->ssl);
}

const char *xks_tls_suite(const xks_tls *tls)
{
    const SSL_CIPHER *cipher = SSL_get_current_cipher(tls->ssl);
    return cipher != NULL ? SSL_CIPHER_standard_name(cipher) : "";
}
