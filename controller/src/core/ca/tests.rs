//! What the authority signs, and who signs when.

use rcgen::{CertificateParams, KeyPair};
use tianqi_common::id::NodeId;
use tianqi_common::wire::SERVER_NAME;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::*;

const NOW: UnixMillis = UnixMillis(1_800_000_000_000);

fn ca(authorities: Vec<Authority>) -> Ca {
    Ca::new(authorities, Lifetimes::default()).unwrap()
}

fn der(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

#[test]
fn an_agents_certificate_keeps_nothing_of_the_request_but_its_key() {
    let ca = ca(vec![Authority::generate(NOW).unwrap()]);
    let key = KeyPair::generate().unwrap();
    let mut wanted = CertificateParams::new(vec![SERVER_NAME.to_owned()]).unwrap();
    wanted.distinguished_name.push(DnType::CommonName, SERVER_NAME);
    wanted.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    wanted.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let csr = wanted.serialize_request(&key).unwrap().pem().unwrap();
    let node = NodeId::new();

    let signed = ca.sign_agent(AgentRequest::parse(&csr).unwrap(), node, NOW).unwrap();

    let der = der(&signed.pem);
    let (_, read) = X509Certificate::from_der(&der).unwrap();
    assert!(!read.is_ca());
    let text = format!("{:?} {:?}", read.subject(), read.subject_alternative_name());
    assert!(!text.contains(SERVER_NAME), "{text}");
    assert!(!read.key_usage().unwrap().unwrap().value.key_cert_sign());
    let usage = read.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.client_auth && !usage.server_auth && !usage.any);
    let identity = AgentIdentity::read(&der).unwrap();
    assert_eq!((identity.node, &identity.serial), (node, &signed.serial));
    assert_eq!(identity.not_after, signed.not_after);
    assert_eq!(signed.not_after, NOW.plus(30 * DAY));
}

#[test]
fn a_request_signed_by_another_key_is_refused() {
    let key = KeyPair::generate().unwrap();
    let mut csr = CertificateParams::default().serialize_request(&key).unwrap().der().to_vec();
    let last = csr.len() - 1;
    csr[last] ^= 1;
    let pem = x509_parser::pem::Pem { label: "CERTIFICATE REQUEST".into(), contents: csr };
    let text = base64_pem(&pem.label, &pem.contents);

    assert!(matches!(AgentRequest::parse(&text), Err(CaError::BadRequest(_))));
    assert!(AgentRequest::parse("").is_err());
    assert!(AgentRequest::parse("-----BEGIN CERTIFICATE REQUEST-----\nAAAA").is_err());
}

fn base64_pem(label: &str, contents: &[u8]) -> String {
    use base64::Engine;
    let body = base64::engine::general_purpose::STANDARD.encode(contents);
    format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n")
}

#[test]
fn serials_are_sixteen_bytes_and_read_back_as_written() {
    let ca = ca(vec![Authority::generate(NOW).unwrap()]);
    for _ in 0..50 {
        let key = KeyPair::generate().unwrap();
        let csr = CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
        let request = AgentRequest::parse(&csr).unwrap();

        let signed = ca.sign_agent(request, NodeId::new(), NOW).unwrap();

        assert_eq!(signed.serial.len(), 32);
        assert_eq!(AgentIdentity::read(&der(&signed.pem)).unwrap().serial, signed.serial);
    }
}

#[test]
fn server_certificate_names_the_fixed_name_and_brings_its_authority() {
    let ca = ca(vec![Authority::generate(NOW).unwrap()]);

    let server = ca.server_certificate(NOW).unwrap();

    let (_, read) = X509Certificate::from_der(&server.chain[0]).unwrap();
    let names = format!("{:?}", read.subject_alternative_name().unwrap().unwrap().value);
    assert!(names.contains(SERVER_NAME));
    assert_eq!(<[u8; 32]>::from(Sha256::digest(&server.chain[1])), ca.fingerprint(NOW).unwrap());
    assert_eq!(server.renew_at, NOW.plus(60 * DAY));
}

#[test]
fn a_successor_is_trusted_at_once_and_signs_after_the_overlap() {
    let first = Authority::generate(NOW).unwrap();
    let first_print = first.fingerprint();
    assert!(!ca(vec![Authority::generate(NOW).unwrap()]).needs_successor(NOW));
    let late = NOW.plus(AUTHORITY_LIFE - SUCCESSOR_BEFORE_END + DAY);
    let both = ca(vec![first, Authority::generate(late).unwrap()]);

    assert!(!both.needs_successor(late));
    assert_eq!(both.trusted().len(), 2);
    assert_eq!(both.fingerprint(late).unwrap(), first_print);
    assert_eq!(both.fingerprint(late.plus(OVERLAP - DAY)).unwrap(), first_print);
    assert_ne!(both.fingerprint(late.plus(OVERLAP)).unwrap(), first_print);
}

#[test]
fn a_single_authority_asks_for_a_successor_a_year_before_its_end() {
    let one = ca(vec![Authority::generate(NOW).unwrap()]);
    let due = NOW.plus(AUTHORITY_LIFE - SUCCESSOR_BEFORE_END);

    assert!(!one.needs_successor(UnixMillis(due.0 - 1_000)));
    assert!(one.needs_successor(due.plus(Duration::from_secs(1))));
}

#[tokio::test]
async fn the_authority_is_made_once_and_read_back_with_its_key() {
    let folder = tempfile::tempdir().unwrap();
    let seal = crate::core::seal::Seal::open_or_create(&folder.path().join("key")).unwrap();
    for db in crate::core::db::testing::databases().await {
        let first = store::open(&db, &seal, Lifetimes::default(), NOW).await.unwrap();
        let again = store::open(&db, &seal, Lifetimes::default(), NOW).await.unwrap();

        assert_eq!(first.fingerprint(NOW).unwrap(), again.fingerprint(NOW).unwrap());
        assert!(again.server_certificate(NOW).is_ok());
        let due = NOW.plus(AUTHORITY_LIFE - DAY);
        let later = store::open(&db, &seal, Lifetimes::default(), due).await.unwrap();
        assert_eq!(later.trusted().len(), 2);
    }
}
