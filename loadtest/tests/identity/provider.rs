//! An identity provider: keys, the tokens that they sign, and a server that gives its key set by HTTPS, or something else
//! by a script.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use loadtest::process::TempDir;
use openssl::asn1::Asn1Time;
use openssl::bn::{BigNum, BigNumContext};
use openssl::ec::{EcGroup, EcKey};
use openssl::ecdsa::EcdsaSig;
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::rsa::{Padding, Rsa};
use openssl::sign::{RsaPssSaltlen, Signer};
use openssl::ssl::{SslAcceptor, SslMethod};
use openssl::x509::extension::SubjectAlternativeName;
use openssl::x509::{X509, X509Name};
use serde_json::{Value, json};

// ---- keys -----------------------------------------------------------------------------------------------------------

/// A key with its `kid`.
pub(crate) struct Key {
    pub(crate) id: &'static str,
    private: PKey<Private>,
}

impl Key {
    pub(crate) fn rsa(id: &'static str) -> Self {
        Self { id, private: PKey::from_rsa(Rsa::generate(2048).unwrap()).unwrap() }
    }

    pub(crate) fn ec(id: &'static str, curve: Nid) -> Self {
        let group = EcGroup::from_curve_name(curve).unwrap();
        Self { id, private: PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap() }
    }

    pub(crate) fn p256(id: &'static str) -> Self {
        Self::ec(id, Nid::X9_62_PRIME256V1)
    }

    pub(crate) fn ed25519(id: &'static str) -> Self {
        Self { id, private: PKey::generate_ed25519().unwrap() }
    }

    /// The private key in PEM.
    pub(crate) fn private_pem(&self) -> String {
        String::from_utf8(self.private.private_key_to_pem_pkcs8().unwrap()).unwrap()
    }

    /// The public key in PEM, as an attacker has it.
    pub(crate) fn public_pem(&self) -> Vec<u8> {
        self.private.public_key_to_pem().unwrap()
    }

    /// Its JWK (RFC 7517).
    pub(crate) fn jwk(&self) -> Value {
        let number = |number: &openssl::bn::BigNumRef| URL_SAFE_NO_PAD.encode(number.to_vec());
        if let Ok(rsa) = self.private.rsa() {
            return json!({ "kty": "RSA", "kid": self.id, "use": "sig", "n": number(rsa.n()), "e": number(rsa.e()) });
        }
        let Ok(key) = self.private.ec_key() else {
            let x = URL_SAFE_NO_PAD.encode(self.private.raw_public_key().unwrap());
            return json!({ "kty": "OKP", "crv": "Ed25519", "kid": self.id, "x": x });
        };
        let (mut x, mut y) = (BigNum::new().unwrap(), BigNum::new().unwrap());
        let mut context = BigNumContext::new().unwrap();
        key.public_key().affine_coordinates_gfp(key.group(), &mut x, &mut y, &mut context).unwrap();
        let (crv, len) = curve(&key);
        let [x, y] = [x, y].map(|half| URL_SAFE_NO_PAD.encode(half.to_vec_padded(len).unwrap()));
        json!({ "kty": "EC", "crv": crv, "kid": self.id, "x": x, "y": y })
    }

    /// A token with these claims, which names the key.
    pub(crate) fn sign(&self, algorithm: &str, claims: &Value) -> String {
        self.sign_with(algorithm, &json!({ "alg": algorithm, "kid": self.id }), claims)
    }

    /// A token with any header.
    pub(crate) fn sign_with(&self, algorithm: &str, header: &Value, claims: &Value) -> String {
        let signed = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part.to_string())).join(".");
        let digest = match &algorithm[2..] {
            "384" => MessageDigest::sha384(),
            "512" => MessageDigest::sha512(),
            _ => MessageDigest::sha256(),
        };
        let mut signer = match algorithm {
            "EdDSA" => Signer::new_without_digest(&self.private).unwrap(),
            _ => Signer::new(digest, &self.private).unwrap(),
        };
        if algorithm.starts_with("PS") {
            signer.set_rsa_padding(Padding::PKCS1_PSS).unwrap();
            signer.set_rsa_mgf1_md(digest).unwrap();
            signer.set_rsa_pss_saltlen(RsaPssSaltlen::DIGEST_LENGTH).unwrap();
        }
        let mut signature = signer.sign_oneshot_to_vec(signed.as_bytes()).unwrap();
        if algorithm.starts_with("ES") {
            let (_, len) = curve(&self.private.ec_key().unwrap());
            let numbers = EcdsaSig::from_der(&signature).unwrap();
            signature = [numbers.r(), numbers.s()].map(|half| half.to_vec_padded(len).unwrap()).concat();
        }
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

fn curve(key: &EcKey<Private>) -> (&'static str, i32) {
    if key.group().degree() == 256 { ("P-256", 32) } else { ("P-384", 48) }
}

/// The set of these keys, in JSON.
pub(crate) fn key_set(keys: &[&Key]) -> String {
    json!({ "keys": keys.iter().map(|key| key.jwk()).collect::<Vec<_>>() }).to_string()
}

// ---- the server -----------------------------------------------------------------------------------------------------

/// What the provider answers.
#[derive(Clone)]
pub(crate) struct Answer {
    pub(crate) status: &'static str,
    pub(crate) body: String,
    /// How long it waits before it answers.
    pub(crate) delay: Duration,
}

impl Answer {
    pub(crate) fn keys(keys: &[&Key]) -> Self {
        Self::of("200 OK", &key_set(keys))
    }

    pub(crate) fn of(status: &'static str, body: &str) -> Self {
        Self { status, body: body.to_owned(), delay: Duration::ZERO }
    }
}

/// A server with a certificate of its own making.
pub(crate) struct Provider {
    pub(crate) address: SocketAddr,
    dir: TempDir,
    state: Arc<Mutex<State>>,
}

struct State {
    /// `None`: connections are closed unanswered.
    answer: Option<Answer>,
    requests: Vec<String>,
}

impl Provider {
    pub(crate) fn start(answer: Option<Answer>) -> Self {
        let (certificate, key) = certificate();
        let dir = TempDir::new("provider");
        dir.file("ca.pem", &String::from_utf8(certificate.to_pem().unwrap()).unwrap());
        let mut acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server()).unwrap();
        acceptor.set_private_key(&key).unwrap();
        acceptor.set_certificate(&certificate).unwrap();
        let acceptor = acceptor.build();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State { answer, requests: Vec::new() }));
        let served = Arc::clone(&state);
        // It ends with the test's process.
        thread::spawn(move || {
            for socket in listener.incoming().map_while(Result::ok) {
                let (acceptor, state) = (acceptor.clone(), Arc::clone(&served));
                thread::spawn(move || serve(&acceptor, socket, &state));
            }
        });
        Self { address, dir, state }
    }

    pub(crate) fn url(&self) -> String {
        format!("https://{}/realms/shop/certs?use=sig", self.address)
    }

    /// The certificate to trust.
    pub(crate) fn ca_file(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    pub(crate) fn answers(&self, answer: Option<Answer>) {
        self.state.lock().unwrap().answer = answer;
    }

    /// The requests so far, with their headers.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.state.lock().unwrap().requests.clone()
    }
}

fn serve(acceptor: &SslAcceptor, socket: TcpStream, state: &Mutex<State>) {
    // A pod that does not trust the certificate ends the handshake.
    let Ok(mut stream) = acceptor.accept(socket) else { return };
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(1) = stream.read(&mut byte) else { return };
        head.extend(byte);
    }
    let answer = {
        let mut state = state.lock().unwrap();
        state.requests.push(String::from_utf8(head).unwrap());
        state.answer.clone()
    };
    let Some(Answer { status, body, delay }) = answer else { return };
    thread::sleep(delay);
    let head = format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n", body.len());
    // A pod that waits no longer has gone.
    let _ = stream.write_all(format!("{head}{body}").as_bytes());
    let _ = stream.shutdown();
}

/// A certificate for the loopback address that signs itself, and its key.
fn certificate() -> (X509, PKey<Private>) {
    let key = Key::p256("tls").private;
    let mut name = X509Name::builder().unwrap();
    name.append_entry_by_text("CN", "provider").unwrap();
    let name = name.build();
    let mut builder = X509::builder().unwrap();
    builder.set_version(2).unwrap();
    builder.set_serial_number(&BigNum::from_u32(1).unwrap().to_asn1_integer().unwrap()).unwrap();
    builder.set_subject_name(&name).unwrap();
    builder.set_issuer_name(&name).unwrap();
    builder.set_pubkey(&key).unwrap();
    builder.set_not_before(&Asn1Time::days_from_now(0).unwrap()).unwrap();
    builder.set_not_after(&Asn1Time::days_from_now(2).unwrap()).unwrap();
    let names = SubjectAlternativeName::new().ip("127.0.0.1").build(&builder.x509v3_context(None, None)).unwrap();
    builder.append_extension(names).unwrap();
    builder.sign(&key, MessageDigest::sha256()).unwrap();
    (builder.build(), key)
}
