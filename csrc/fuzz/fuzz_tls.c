/* SPDX-License-Identifier: Apache-2.0 */
/* Invariant: any bytes from a client end in a status, never in a crash, and make us send no more than a bounded answer. */
#include "xks_tls.h"
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static xks_tls_context *context; /* of the fuzzer, not of the product */

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    char directory[] = "/tmp/xksfast-fuzz-XXXXXX", certificate_file[64], key_file[64], error[XKS_ERROR_TEXT_BYTES];
    EVP_PKEY *key = EVP_EC_gen("P-256");
    X509 *certificate = X509_new();
    if (mkdtemp(directory) == NULL || key == NULL || certificate == NULL) {
        abort();
    }
    X509_gmtime_adj(X509_getm_notBefore(certificate), 0);
    X509_gmtime_adj(X509_getm_notAfter(certificate), 86400);
    X509_set_pubkey(certificate, key);
    X509_sign(certificate, key, EVP_sha256());
    snprintf(certificate_file, sizeof certificate_file, "%s/c", directory);
    snprintf(key_file, sizeof key_file, "%s/k", directory);
    (void)umask(077);
    FILE *file = fopen(certificate_file, "w");
    PEM_write_X509(file, certificate);
    fclose(file);
    file = fopen(key_file, "w");
    PEM_write_PrivateKey(file, key, NULL, NULL, 0, NULL, NULL);
    fclose(file);
    xks_tls_config config = {.certificate_file = certificate_file, .private_key_file = key_file};
    if (xks_tls_context_new(&config, &context, error) != XKS_OK) {
        fprintf(stderr, "%s\n", error);
        abort();
    }
    EVP_PKEY_free(key);
    X509_free(certificate);
    unlink(certificate_file);
    unlink(key_file);
    rmdir(directory);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t plain[4096];
    xks_tls *tls;
    size_t len;
    if (xks_tls_new(context, &tls) != XKS_OK) {
        abort();
    }
    xks_tls_input(tls, data, size);
    xks_status status = xks_tls_handshake(tls);
    if (status == XKS_OK && xks_tls_read(tls, plain, sizeof plain, &len) == XKS_OK) {
        abort(); /* nobody gets that far without a key agreement */
    }
    xks_tls_shutdown(tls);
    (void)xks_tls_output(tls, &len);
    if (len > 65536) {
        abort();
    }
    xks_tls_free(tls);
    return 0;
}
