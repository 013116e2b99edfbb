//! The JSON documents of an image (OCI image specification 1.1; docker's `manifest.json`).

use serde::Deserialize;

use super::ImageError;
use crate::rootfs::ImageConfig;

/// A sha256 digest as an image writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Digest {
    hex: String,
}

impl Digest {
    /// Accepts `sha256:` and 64 lower-case hexadecimal digits, nothing else: a digest becomes part of a file name.
    ///
    /// # Errors
    /// It has another form.
    pub fn parse(digest: &str) -> Result<Digest, ImageError> {
        let hex = digest.strip_prefix("sha256:").filter(|hex| {
            hex.len() == 64 && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        });
        match hex {
            Some(hex) => Ok(Digest { hex: hex.into() }),
            None => Err(ImageError::Digest { digest: digest.chars().take(100).collect() }),
        }
    }

    /// 64 hexadecimal digits.
    pub fn hex(&self) -> &str {
        &self.hex
    }

    /// Name of its blob in an image layout.
    pub fn blob(&self) -> String {
        format!("blobs/sha256/{}", self.hex)
    }
}

/// A pointer to a blob.
#[derive(Debug, Clone, Deserialize)]
pub struct Descriptor {
    pub digest: String,
    pub size: u64,
    pub platform: Option<Platform>,
    #[serde(default)]
    pub annotations: std::collections::BTreeMap<String, String>,
}

/// Annotation that holds an image's name in `index.json`.
const REFERENCE: &str = "org.opencontainers.image.ref.name";

impl Descriptor {
    /// The image's name, if it has one.
    pub fn reference(&self) -> Option<&str> {
        self.annotations.get(REFERENCE).map(String::as_str)
    }

    /// False for another operating system or processor; an image that says nothing may fit.
    pub fn may_run(&self) -> bool {
        self.platform
            .as_ref()
            .is_none_or(|platform| platform.os == "linux" && platform.architecture == "amd64")
    }
}

/// What an image in an index runs on.
#[derive(Debug, Clone, Deserialize)]
pub struct Platform {
    #[serde(default)]
    pub os: String,
    #[serde(default)]
    pub architecture: String,
}

/// An image index or an image manifest: told apart by which list it has, as media types are optional.
#[derive(Debug, Default, Deserialize)]
pub struct Document {
    #[serde(default)]
    pub manifests: Vec<Descriptor>,
    pub config: Option<Descriptor>,
    #[serde(default)]
    pub layers: Vec<Descriptor>,
}

/// An image in docker's `manifest.json`. Its file names are in the archive.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DockerImage {
    pub config: String,
    pub layers: Vec<String>,
    #[serde(default)]
    pub repo_tags: Option<Vec<String>>,
}

/// An image's configuration.
#[derive(Debug, Default, Deserialize)]
pub struct Config {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    config: Option<Run>,
    rootfs: Option<RootFs>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Run {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    working_dir: Option<String>,
    user: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Vec<String>,
}

impl Config {
    /// # Errors
    /// The image is for another operating system or processor.
    pub fn check_platform(&self) -> Result<(), ImageError> {
        let fits = |value: &str, wanted| value.is_empty() || value == wanted;
        if fits(&self.os, "linux") && fits(&self.architecture, "amd64") {
            return Ok(());
        }
        Err(ImageError::Platform { found: format!("{}/{}", self.os, self.architecture) })
    }

    /// Digests of the unpacked layers; empty when the image does not say.
    ///
    /// # Errors
    /// A digest has an unknown form.
    pub fn layers(&self) -> Result<Vec<Digest>, ImageError> {
        let ids = self.rootfs.iter().flat_map(|rootfs| &rootfs.diff_ids);
        ids.map(|id| Digest::parse(id)).collect()
    }

    /// How the image runs.
    pub fn run(self) -> ImageConfig {
        let run = self.config.unwrap_or_default();
        let some = |value: Option<String>| value.filter(|value| !value.is_empty());
        let pair = |entry: String| match entry.split_once('=') {
            Some((key, value)) => (key.to_owned(), value.to_owned()),
            None => (entry, String::new()),
        };
        ImageConfig {
            command: [run.entrypoint, run.cmd].into_iter().flatten().flatten().collect(),
            env: run.env.unwrap_or_default().into_iter().map(pair).collect(),
            workdir: some(run.working_dir),
            user: some(run.user),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sha256_digests_become_file_names() {
        let hex = "0123456789abcdef".repeat(4);
        assert_eq!(Digest::parse(&format!("sha256:{hex}")).unwrap().blob(), format!("blobs/sha256/{hex}"));
        for bad in
            ["", "sha256:", "sha256:../../etc/passwd", &format!("sha512:{hex}"), &format!("sha256:{hex}0")]
        {
            assert!(Digest::parse(bad).is_err(), "{bad}");
        }
        assert!(Digest::parse(&format!("sha256:{}", hex.to_uppercase())).is_err());
    }

    #[test]
    fn a_configuration_becomes_command_and_environment() {
        let json = r#"{"os":"linux","architecture":"amd64","config":{"Entrypoint":["/bin/sh","-c"],"Cmd":["true"],
            "Env":["A=b=c","EMPTY"],"WorkingDir":"","User":"65534:65534","ExposedPorts":{"80/tcp":{}}}}"#;
        let config: Config = serde_json::from_str(json).unwrap();
        config.check_platform().unwrap();
        let run = config.run();
        assert_eq!(run.command, ["/bin/sh", "-c", "true"]);
        assert_eq!(run.env.get("A").unwrap(), "b=c");
        assert_eq!(run.env.get("EMPTY").unwrap(), "");
        assert_eq!((run.workdir, run.user.as_deref()), (None, Some("65534:65534")));
    }

    #[test]
    fn an_image_for_another_processor_is_refused() {
        let config: Config = serde_json::from_str(r#"{"os":"linux","architecture":"arm64"}"#).unwrap();
        assert_eq!(
            config.check_platform().unwrap_err().to_string(),
            "The image is for linux/arm64, not for linux/amd64"
        );
    }
}
