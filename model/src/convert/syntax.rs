//! The form of texts: what may stand in a label, a URL, a key or a path. Each check gives what is wrong in words
//! that fit after the field's name. No check repeats a text that may be secret.

use std::net::IpAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::name::{NAME_MAX, NameError};
use crate::{Name, limits};

/// A text of the user's in an answer: escaped, and cut off where nobody would read on.
pub fn quote(text: &str) -> String {
    const SHOWN: usize = 64;
    let mut shown: String = text.chars().take(SHOWN).collect();
    if text.chars().count() > SHOWN {
        shown.push('…');
    }
    format!("{shown:?}")
}

/// Text for people.
pub fn text(text: &str, limit: usize) -> Result<(), String> {
    let count = text.chars().count();
    if count > limit {
        return Err(format!("has {count} characters, {limit} are allowed"));
    }
    match text.chars().find(|c| c.is_control()) {
        Some(c) => Err(format!("has the control character {c:?}; write it without")),
        None => Ok(()),
    }
}

/// Why a text is no name, with one that would be where the wish can be guessed.
pub fn name_error(error: &NameError, text: &str) -> String {
    if *error == NameError::Empty {
        let form = "a lower-case letter followed by lower-case letters, digits and hyphens";
        return format!("is empty; {form} is needed, {NAME_MAX} bytes at most");
    }
    let lower = text.trim().to_ascii_lowercase().replace(['_', ' ', '.', '/', ':'], "-");
    match Name::new(&lower) {
        Ok(name) if name.as_str() != text => format!("{error}; {:?} would do", name.as_str()),
        _ => error.to_string(),
    }
}

/// A CPU model as libvirt names it, and what is taken from it: "Skylake-Client,-hle".
pub fn cpu_model(model: &str) -> Result<(), String> {
    let word = |word: &str| word.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    let mut words = model.split(',');
    let named = words.next().is_some_and(|name| word(name) && !name.is_empty() && !name.starts_with('-'));
    if named && words.all(|lacking| lacking.len() > 1 && lacking.starts_with('-') && word(lacking)) {
        match model.len() <= limits::LABEL_BYTES {
            true => Ok(()),
            false => Err(format!("has {} bytes, {} are allowed", model.len(), limits::LABEL_BYTES)),
        }
    } else {
        Err("is no CPU model; a name such as IvyBridge is, or one with features taken off, \"Skylake-Client,-hle\""
            .to_owned())
    }
}

pub fn label_key(key: &str) -> Result<(), String> {
    const ALLOWED: &str =
        "letters, digits, '-', '_', '.' and '/' are allowed, a letter or digit at both ends";
    if key.is_empty() {
        return Err(format!("is empty; {ALLOWED}"));
    }
    if key.len() > limits::LABEL_BYTES {
        return Err(format!("has {} bytes, {} are allowed", key.len(), limits::LABEL_BYTES));
    }
    if let Some(c) = key.chars().find(|c| !(c.is_ascii_alphanumeric() || "-_./".contains(*c))) {
        return Err(format!("has {c:?}; {ALLOWED}"));
    }
    let end = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    if end(key.chars().next()) && end(key.chars().next_back()) {
        Ok(())
    } else {
        Err(format!("begins or ends in a sign; {ALLOWED}"))
    }
}

/// A label's value: what a selector can also say.
pub fn label_value(value: &str) -> Result<(), String> {
    if value.len() > limits::LABEL_BYTES {
        return Err(format!("has {} bytes, {} are allowed", value.len(), limits::LABEL_BYTES));
    }
    if let Some(c) = value.chars().find(|c| c.is_control() || *c == ',') {
        return Err(format!("has {c:?}; commas and control characters are not allowed"));
    }
    if value.starts_with('=') || value.trim() != value {
        return Err("begins or ends with a space, or begins with '='; write it without".into());
    }
    Ok(())
}

/// A hex SHA-256, made lower-case.
pub fn sha256(text: &str) -> Result<String, String> {
    if text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
        Ok(text.to_ascii_lowercase())
    } else {
        Err(format!("is {}; 64 hex digits are needed, as sha256sum prints them", quote(text)))
    }
}

/// Where a controller may fetch an image from. A refused URL is not repeated, for it may hold a password.
pub fn url(text: &str) -> Result<(), String> {
    if text.len() > limits::URL_BYTES {
        return Err(format!("has {} bytes, {} are allowed", text.len(), limits::URL_BYTES));
    }
    let scheme = text.get(..8).unwrap_or(text).to_ascii_lowercase();
    if !(scheme.starts_with("https://") || scheme.starts_with("http://")) {
        return Err("must begin with https:// or http://".into());
    }
    let uri: http::Uri =
        text.parse().map_err(|_| "is not a URL; such as https://example.org/debian.qcow2 is needed")?;
    let authority = uri.authority().map_or("", |a| a.as_str());
    if authority.contains('@') {
        return Err("holds a user name or password, which everybody who may read images would see; \
                    upload the file instead"
            .into());
    }
    if uri.host().is_none_or(str::is_empty) {
        return Err("names no host; such as https://example.org/debian.qcow2 is needed".into());
    }
    Ok(())
}

/// Where a BMC is: a host, or one system of it. A refused one is not repeated, for it may hold a password.
pub fn bmc_url(text: &str, plain: bool) -> Result<(), String> {
    if text.len() > limits::URL_BYTES {
        return Err(format!("has {} bytes, {} are allowed", text.len(), limits::URL_BYTES));
    }
    let uri: http::Uri = text.parse().map_err(|_| "is not a URL; such as https://10.0.9.11 is needed")?;
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err("holds a user name or password; these have fields of their own".into());
    }
    let known = matches!(uri.scheme_str(), Some("https" | "http"));
    if !known || uri.host().is_none_or(str::is_empty) {
        return Err("names no host; such as https://10.0.9.11 is needed".into());
    }
    if !plain && !text.get(..8).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https://")) {
        return Err("must begin with https://; http:// is for what is unverified".into());
    }
    if text.contains(['?', '#']) {
        return Err("has a query or fragment, which no BMC's address has".into());
    }
    Ok(())
}

/// A calendar date.
pub fn date(text: &str) -> Result<(), String> {
    let wrong = || format!("is {}; a date such as 2031-06-30 is needed", quote(text));
    let digits = |range: std::ops::Range<usize>| {
        let part = text.get(range).filter(|part| part.bytes().all(|b| b.is_ascii_digit()));
        part.and_then(|part| part.parse::<u16>().ok()).ok_or_else(wrong)
    };
    let form = text.len() == 10 && text.get(4..5) == Some("-") && text.get(7..8) == Some("-");
    if !form {
        return Err(wrong());
    }
    let (year, month, day) = (digits(0..4)?, digits(5..7)?, digits(8..10)?);
    let month = u8::try_from(month).ok().and_then(|m| ::time::Month::try_from(m).ok());
    let date = month
        .zip(u8::try_from(day).ok())
        .and_then(|(month, day)| ::time::Date::from_calendar_date(i32::from(year), month, day).ok());
    date.map(|_| ()).ok_or_else(wrong)
}

/// A directory on the nodes.
pub fn path(text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err("must be given: an absolute directory such as /var/lib/tamdao/pool".into());
    }
    if text.len() > limits::PATH_BYTES {
        return Err(format!("has {} bytes, {} are allowed", text.len(), limits::PATH_BYTES));
    }
    if text.chars().any(char::is_control) {
        return Err("has a control character; write it without".into());
    }
    let Some(rest) = text.strip_prefix('/') else {
        return Err(format!("is {}; it must be absolute: begin with '/'", quote(text)));
    };
    if rest.is_empty() {
        return Err("is the root of the file system; a directory below it is needed".into());
    }
    match rest.split('/').find(|part| matches!(*part, "" | "." | "..")) {
        Some("") => Err(format!("is {}; it must have no double or trailing '/'", quote(text))),
        Some(part) => Err(format!("is {}; it must not have {part:?} in it", quote(text))),
        None => Ok(()),
    }
}

/// A network device's name, as Linux allows it, less the signs that would need quoting somewhere.
pub fn device(text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err("must be given: the name of a bridge device, such as br0".into());
    }
    if text.len() > limits::DEVICE_NAME_BYTES {
        return Err(format!("has {} bytes, {} are allowed", text.len(), limits::DEVICE_NAME_BYTES));
    }
    let good = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if matches!(text, "." | "..") || !text.chars().all(good) {
        return Err(format!("is {}; letters, digits, '-', '_' and '.' are allowed", quote(text)));
    }
    Ok(())
}

/// A MAC address, made lower-case with colons.
pub fn mac(text: &str) -> Result<String, String> {
    let wrong = || format!("is {}; six hex bytes are needed, such as 52:54:00:12:34:56", quote(text));
    let parts: Vec<&str> = text.split([':', '-']).collect();
    let byte = |part: &&str| {
        let hex = part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit());
        hex.then(|| u8::from_str_radix(part, 16).ok()).flatten()
    };
    let bytes: Vec<u8> = parts.iter().filter_map(byte).collect();
    if parts.len() != 6 || bytes.len() != 6 {
        return Err(wrong());
    }
    if bytes[0] & 1 == 1 {
        return Err(format!("is {}, a multicast address; its first byte must be even", quote(text)));
    }
    if bytes.iter().all(|b| *b == 0) {
        return Err("is all zeros, which no interface may have".into());
    }
    if bytes[0] == 0xfe {
        return Err(format!("is {}; the first byte fe is reserved for the host's side", quote(text)));
    }
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(":"))
}

pub fn address(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| {
        format!("is {}; an address without prefix is needed, such as 10.20.0.7 or fd00::7", quote(text))
    })
}

/// The key types of OpenSSH.
const KEY_TYPES: [&str; 7] = [
    "ssh-ed25519",
    "ssh-rsa",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
];

/// One line of authorized_keys. The text is never repeated: somebody may have given the private key.
pub fn ssh_key(text: &str) -> Result<String, String> {
    let line = text.trim();
    if line.len() > limits::SSH_KEY_BYTES {
        return Err(format!("has {} bytes, {} are allowed", line.len(), limits::SSH_KEY_BYTES));
    }
    if line.contains("PRIVATE KEY") {
        return Err("is a private key, which nobody should ever have sent; give the .pub file and make a \
                    new pair"
            .into());
    }
    if line.chars().any(char::is_control) {
        return Err("has a line break or another control character; give one key in each entry".into());
    }
    let words: Vec<&str> = line.split(' ').filter(|word| !word.is_empty()).collect();
    let Some(at) = words.iter().position(|word| KEY_TYPES.contains(word)) else {
        return Err(format!(
            "is not a public key as in authorized_keys; it must have one of the types {}",
            KEY_TYPES.join(", ")
        ));
    };
    let blob = words.get(at + 1).and_then(|body| STANDARD.decode(body).ok());
    if !blob.is_some_and(|blob| is_key(&blob, words[at])) {
        return Err(format!("has no valid key after {:?}; was it cut off while copying?", words[at]));
    }
    Ok(line.to_owned())
}

/// Whether the blob is a list of texts, each with its length in front, that begins with the key's type (RFC 4253).
fn is_key(mut blob: &[u8], kind: &str) -> bool {
    let mut texts = 0;
    while let Some((length, rest)) = blob.split_first_chunk::<4>() {
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        let Some((text, rest)) = rest.split_at_checked(length) else { return false };
        if texts == 0 && text != kind.as_bytes() {
            return false;
        }
        (texts, blob) = (texts + 1, rest);
    }
    blob.is_empty() && texts > 1
}

/// How cloud-init and cloudbase-init tell what user data is.
const USER_DATA_HEADERS: [&str; 13] = [
    "#cloud-config",
    "#!",
    "#include",
    "#cloud-boothook",
    "#part-handler",
    "## template:",
    "Content-Type:",
    "MIME-Version:",
    "From ",
    "#ps1",
    "<powershell>",
    "<script>",
    "rem cmd",
];

/// User data, which is never repeated: it may hold passwords.
pub fn user_data(text: &str) -> Result<(), String> {
    if text.len() > limits::USER_DATA_BYTES {
        let (have, may) = (text.len(), limits::USER_DATA_BYTES);
        return Err(format!("has {have} bytes, {may} are allowed; '#include' fetches more from a URL"));
    }
    if text.contains('\0') {
        return Err("has a zero byte; user data is text".into());
    }
    if USER_DATA_HEADERS.iter().any(|header| text.starts_with(header)) {
        Ok(())
    } else {
        Err("begins with nothing that cloud-init knows; its first line must be '#cloud-config', a script's \
             '#!', another of cloud-init's headers, or MIME"
            .into())
    }
}

/// A kernel's command line.
pub fn command_line(text: &str) -> Result<(), String> {
    if text.len() > limits::COMMAND_LINE_BYTES {
        return Err(format!("has {} bytes, {} are allowed", text.len(), limits::COMMAND_LINE_BYTES));
    }
    match text.chars().find(|c| c.is_control()) {
        Some(c) => Err(format!("has the control character {c:?}; it is one line")),
        None => Ok(()),
    }
}
