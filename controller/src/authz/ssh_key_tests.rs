//! What is taken for an SSH public key.

use super::*;

const ED25519: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAICvjztBQGh62NfsD9vZHmN0xBvHMLyuBefme95mo6XeX";
const ECDSA: &str = "ecdsa-sha2-nistp384 AAAAE2VjZHNhLXNoYTItbmlzdHAzODQAAAAIbmlzdHAzODQAAABhBJQSTkPYq37iEEZpZ5vCzWQBmYZk1+P7boSaj1n/yYw3aHKOaGcrHHOWcgS5zMd5lUDiEIWx9Wx13jLSpWHWWkhH5HnURp7shjnGYWQFqX9U036PzFNWhTy1SXqR6fi4mA==";
const RSA: &str = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABAQDoxsY7sQHdZ+KYYHvLChye4bbKsXyZxvhDiOI8Ew5XjIdf8ZuplM0SuJIphMBXYZl4nS8h+m2m/aTcC9lBTkcpiRtHhshA3rFGfcxa1xbozDRRDZP5IF0fhwkjRjUbBvujA3j+vMnLMl52nonfCjhB8vJmFI1LocMU0+MImhFfS7S1Lp112fvFSqFE3I0fWFs0GBmPCg6pEC5IPE6gjkjBHzrxyOx2q0Lyg2qMIVQw5nO3f+Vgbd/I6T8Ul8BdHDclmG2inTKCNayEOn8zZtvBSyXJnjDJVAyX7l7YGMAIau1ko9BwhzE/1Ft09S3KpqzdYsrcnfdj8/2exNyYS6Cf";
const SHORT_RSA: &str = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAgQCrHi5fcwb3IiDTPeQa/nxmPlYiwvyb89aGi9JQloVT+T3tF2TT/9uSczfx33Z/iTFI/3/MaDwmjXOzPGhXen0EvzPq77at4nf7z++2/aM4rIDlBywbDr/KS7GjmcSMmAMQp48Qml+3WLSYMqWpzWhoQaZ684oB8nM6GOG58kUs2w==";
const DSA: &str = "ssh-dss AAAAB3NzaC1kc3MAAACBAPsgBhD/L1RJBwI9GSshCIfhKLWGHRCvDutc6/gdQZuqZzQPY13PuGk1C0jzAXjlBx1JmaFKtyY5JCZN6IsDBlJpP4bQZIgVeLy6rYYISGknHPARTSbrYkbwCyCnt/qAty6T51w6QNGLod6qDgB5ikebkI6VFuwLtwGlCmyuhCLpAAAAFQDmfSY3xSt1H6c2mIYBOV/ScyaIEwAAAIBwqNP8jbcSOl40c4GSi94i9Y7U26gc6BdFYUrBFOEm6OwFDRd2ZVXqkvSn6dqn9k76VA2WxSuNoIfLBKcSIZhV6de+oH+4jbqEjDX4CelMsERhT+NYRu8sm1HPv1CNrcHFr17tgRBHQOX59W5rbODPM+y+pEk18eltmvQQeplYUQAAAH9rAf7KBzqYpQt0W8OWY0090CQwC/yvRehJu7VaIbeojhsSRBmE9q0tcc9juYrlq3xovXA4jakdlNdWAeb40ChfDGQFq4NkUWdm5ruDGJCfqNKBokEfN7n1C/wTwHgenCgSzAu+nc36F0A8nZ5N0HhiJlRYYitxYzHm6kzQSw8/";
/// The key of a security token, put together by hand: ed25519 bytes and the application `ssh:`.
const SK_ED25519: &str = "sk-ssh-ed25519@openssh.com AAAAGnNrLXNzaC1lZDI1NTE5QG9wZW5zc2guY29tAAAAICvjztBQGh62NfsD9vZHmN0xBvHMLyuBefme95mo6XeXAAAABHNzaDo=";

#[test]
fn keys_of_today_are_taken_with_the_fingerprint_that_openssh_shows() {
    for (line, algorithm, fingerprint) in [
        (ED25519, "ssh-ed25519", "SHA256:vB1f8jKYVqYcBHrGS+LoWn2TrLubTPSgA1otpQXX854"),
        (ECDSA, "ecdsa-sha2-nistp384", "SHA256:OUr7HbKkdzcpYjeRUsPUl6mpeLN1hDWu4X+25jl6bv4"),
        (RSA, "ssh-rsa", "SHA256:pZRZb/RVaKfQetzQ4L5X2p1kVmInVwVyxZ2w80bG1wg"),
    ] {
        let parsed = parse(&format!("  {line} alice@laptop\n")).unwrap();

        assert_eq!(
            (parsed.algorithm.as_str(), parsed.fingerprint.as_str()),
            (algorithm, fingerprint)
        );
        assert_eq!((parsed.public_key.as_str(), parsed.comment.as_str()), (line, "alice@laptop"));
    }
    assert_eq!(parse(SK_ED25519).unwrap().algorithm, "sk-ssh-ed25519@openssh.com");
}

#[test]
fn weak_foreign_and_private_keys_are_refused_with_the_reason() {
    for (text, reason) in [
        (SHORT_RSA, "not 1024"),
        (DSA, "ed25519"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAA", "private key"),
        ("", "no SSH public key"),
        ("ssh-ed25519 AAAA", "no SSH public key"),
        ("ssh-ed25519 !!!! alice", "no SSH public key"),
        (&format!("{ED25519}\n{ED25519}"), "one line"),
        (&format!("command=\"id\" {ED25519}"), "no SSH public key"),
        (&"a".repeat(100_000), "one line"),
    ] {
        let problem = parse(text).unwrap_err();

        assert_eq!(problem.code, "bad_ssh_key");
        let is_said = problem.detail.contains(reason) || problem.detail.contains("not taken");
        assert!(is_said, "{text}: {}", problem.detail);
    }
}
