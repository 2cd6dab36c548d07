//! TLS as a client, by the OpenSSL that librdkafka brings: which certificates are trusted, and the handshake.

use std::io;
use std::pin::Pin;

use openssl::error::ErrorStack;
use openssl::ssl::{SslConnector, SslMethod};
use openssl::x509::store::X509StoreBuilder;
use openssl::x509::{X509, X509VerifyResult};
use tokio::net::TcpStream;
use tokio_openssl::SslStream;

/// Certificates that are trusted to sign a server's.
#[derive(Debug, Clone, Default)]
pub(crate) enum Trust {
    /// Those of the system, or of `SSL_CERT_FILE` and `SSL_CERT_DIR`.
    #[default]
    System,
    /// These alone.
    Certificates(Vec<X509>),
}

impl Trust {
    /// Reads certificates in PEM.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) fn parse(pem: &str) -> Result<Self, &'static str> {
        match X509::stack_from_pem(pem.as_bytes()) {
            Ok(certificates) if certificates.is_empty() => Err("has no certificate in PEM"),
            Ok(certificates) => Ok(Self::Certificates(certificates)),
            Err(_) => Err("has a certificate that is not valid PEM"),
        }
    }

    /// # Errors
    /// If OpenSSL rejects the certificates.
    pub(crate) fn connector(&self) -> Result<SslConnector, ErrorStack> {
        let mut builder = SslConnector::builder(SslMethod::tls_client())?;
        match self {
            // The builder trusts what the variables name.
            Self::System if openssl_probe::has_ssl_cert_env_vars() => {}
            Self::System => {
                // The bundled OpenSSL looks in a folder that no distribution has.
                let found = openssl_probe::probe();
                if let Some(file) = found.cert_file {
                    builder.set_ca_file(file)?;
                }
                for folder in found.cert_dir {
                    builder.load_verify_locations(None, Some(&folder))?;
                }
            }
            Self::Certificates(certificates) => {
                let mut store = X509StoreBuilder::new()?;
                for certificate in certificates {
                    store.add_cert(certificate.clone())?;
                }
                builder.set_cert_store(store.build());
            }
        }
        Ok(builder.build())
    }
}

/// Shakes hands with a server, whose certificate must be trusted and bear this host's name or address.
///
/// # Errors
/// Why the connection is not safe.
pub(crate) async fn connect(tls: &SslConnector, host: &str, socket: TcpStream) -> io::Result<SslStream<TcpStream>> {
    let ssl = tls.configure()?.into_ssl(host)?;
    let mut stream = SslStream::new(ssl, socket)?;
    match Pin::new(&mut stream).connect().await {
        Ok(()) => Ok(stream),
        Err(error) => Err(io::Error::other(match stream.ssl().verify_result() {
            X509VerifyResult::OK => format!("TLS: {error}"),
            // The error itself says no more than that.
            fault => format!("TLS: certificate verify failed: {fault}"),
        })),
    }
}
