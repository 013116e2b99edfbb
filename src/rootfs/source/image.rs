//! Reads an image: finds its manifest and applies its layers in order.

use std::path::Path;

use serde::de::DeserializeOwned;

use super::archive::{Store, unpacked};
use super::document::{Config, Descriptor, Digest, DockerImage, Document};
use super::verify::{Summary, Verifier};
use super::{ImageError, Loaded, Source};
use crate::rootfs::layer::{self, LayerError};
use crate::rootfs::spool::Spool;
use crate::rootfs::tree::Tree;
use crate::rootfs::{Progress, limits};

/// A file of the image and what it must be.
#[derive(Debug, Clone)]
struct Blob {
    name: String,
    len: Option<u64>,
    digest: Option<Digest>,
}

/// An image whose manifest was found.
#[derive(Debug)]
struct Parts {
    config: Blob,
    layers: Vec<Blob>,
}

/// Reads the image that `source` names; contents go to the spool.
///
/// # Errors
/// See [`ImageError`].
pub fn image(
    source: &Source,
    spool: &mut Spool,
    progress: &mut dyn FnMut(Progress),
) -> Result<Loaded, ImageError> {
    let (store, parts) = match source {
        Source::OciLayout { dir, reference } => {
            let store = Store::Directory(dir.clone());
            let parts = oci(&store, reference.as_deref())?;
            (store, parts)
        }
        Source::Archive(path) | Source::Directory(path) | Source::Ext4Image(path) => archive(path, spool)?,
    };
    let config: Config = document(&store, &parts.config, "image configuration")?;
    config.check_platform()?;
    let tree = layers(&store, &parts.layers, &config.layers()?, spool, progress)?;
    Ok(Loaded { tree, config: Some(config.run()) })
}

fn archive(path: &Path, spool: &Spool) -> Result<(Store, Parts), ImageError> {
    let store = Store::archive(path, spool)?;
    let parts = if store.has("index.json") {
        oci(&store, None)?
    } else if store.has("manifest.json") {
        docker(&store)?
    } else {
        return Err(ImageError::NotAnImage { path: path.into() });
    };
    Ok((store, parts))
}

fn oci(store: &Store, reference: Option<&str>) -> Result<Parts, ImageError> {
    let index = Blob { name: "index.json".into(), len: None, digest: None };
    let mut document: Document = self::document(store, &index, "image index")?;
    let mut wanted = reference;
    for _ in 0..limits::INDEXES {
        if let Some(config) = &document.config {
            let layers = document.layers.iter().map(blob).collect::<Result<Vec<_>, _>>()?;
            return Ok(Parts { config: blob(config)?, layers });
        }
        let next = choose(&document.manifests, wanted)?;
        document = self::document(store, &blob(next)?, "image manifest")?;
        // Only the outermost index names images; below it are platforms.
        wanted = None;
    }
    Err(ImageError::TooMuch { what: "indexes" })
}

/// The one image that fits: by name if there is one, then by platform.
fn choose<'a>(manifests: &'a [Descriptor], wanted: Option<&str>) -> Result<&'a Descriptor, ImageError> {
    let available = || manifests.iter().filter_map(|m| m.reference().map(str::to_owned)).take(20).collect();
    let named = |m: &&Descriptor| wanted.is_none_or(|name| m.reference() == Some(name));
    let candidates: Vec<&Descriptor> = manifests.iter().filter(named).collect();
    if let (Some(wanted), []) = (wanted, candidates.as_slice()) {
        return Err(ImageError::NoSuchImage { wanted: wanted.into(), available: available() });
    }
    let fitting: Vec<&Descriptor> = candidates.iter().copied().filter(|m| m.may_run()).collect();
    match (fitting.as_slice(), candidates.as_slice()) {
        ([one], _) => Ok(one),
        // An index of one image per platform, none of them ours.
        ([], [other, ..]) => Err(ImageError::Platform { found: platform(other) }),
        // One of them says that it fits, the others (attestations) say nothing.
        (many, _) => {
            let mut sure = many.iter().filter(|m| m.platform.is_some());
            match (sure.next(), sure.next()) {
                (Some(one), None) => Ok(one),
                _ => Err(ImageError::Ambiguous { available: available() }),
            }
        }
    }
}

fn platform(descriptor: &Descriptor) -> String {
    descriptor.platform.as_ref().map_or_else(String::new, |p| format!("{}/{}", p.os, p.architecture))
}

fn blob(descriptor: &Descriptor) -> Result<Blob, ImageError> {
    let digest = Digest::parse(&descriptor.digest)?;
    Ok(Blob { name: digest.blob(), len: Some(descriptor.size), digest: Some(digest) })
}

/// docker's own format has no digests of packed layers; those of the unpacked ones are in the configuration.
fn docker(store: &Store) -> Result<Parts, ImageError> {
    let manifest = Blob { name: "manifest.json".into(), len: None, digest: None };
    let images: Vec<DockerImage> = document(store, &manifest, "docker manifest")?;
    let blob = |name: &String| Blob { name: name.clone(), len: None, digest: None };
    match images.as_slice() {
        [image] => Ok(Parts { config: blob(&image.config), layers: image.layers.iter().map(blob).collect() }),
        _ => {
            let tags = images.iter().filter_map(|image| image.repo_tags.as_ref()).flatten();
            Err(ImageError::Ambiguous { available: tags.take(20).cloned().collect() })
        }
    }
}

fn document<T: DeserializeOwned>(store: &Store, blob: &Blob, what: &'static str) -> Result<T, ImageError> {
    let (bytes, summary) = store.read(&blob.name)?;
    check(blob, &summary)?;
    serde_json::from_slice(&bytes).map_err(|source| ImageError::Document {
        name: blob.name.clone(),
        what,
        source,
    })
}

fn check(blob: &Blob, summary: &Summary) -> Result<(), ImageError> {
    match summary.differs(blob.len, blob.digest.as_ref()) {
        Some(what) => Err(ImageError::Damaged { name: blob.name.clone(), what }),
        None => Ok(()),
    }
}

fn layers(
    store: &Store,
    blobs: &[Blob],
    digests: &[Digest],
    spool: &mut Spool,
    progress: &mut dyn FnMut(Progress),
) -> Result<Tree, ImageError> {
    if blobs.len() > limits::LAYERS {
        return Err(ImageError::TooMuch { what: "layers" });
    }
    if !digests.is_empty() && digests.len() != blobs.len() {
        return Err(ImageError::LayerCount { layers: blobs.len(), named: digests.len() });
    }
    let mut tree = Tree::default();
    let mut budget = Budget { bytes: limits::CONTENT, entries: limits::ENTRIES };
    for (index, blob) in blobs.iter().enumerate() {
        progress(Progress::Layer { number: index + 1, of: blobs.len() });
        let layer = Layer { store, blob, number: index + 1, unpacked: digests.get(index) };
        let changes = layer.read(spool, &mut budget)?;
        layer::apply(&mut tree, changes).map_err(|e| layer.refused(e))?;
    }
    Ok(tree)
}

/// What is left for the layers that follow.
struct Budget {
    bytes: u64,
    entries: usize,
}

struct Layer<'a> {
    store: &'a Store,
    blob: &'a Blob,
    /// Counts from 1.
    number: usize,
    /// Digest of the unpacked layer.
    unpacked: Option<&'a Digest>,
}

impl Layer<'_> {
    fn refused(&self, source: LayerError) -> ImageError {
        ImageError::Layer { number: self.number, name: self.blob.name.clone(), source }
    }

    /// The changes of a layer, once its digests, packed and unpacked, were found right.
    fn read(&self, spool: &mut Spool, budget: &mut Budget) -> Result<Vec<layer::Change>, ImageError> {
        let Blob { name, len, .. } = self.blob;
        let failed = |source| ImageError::Blob { name: name.clone(), source };
        let mut packed = Verifier::new(self.store.open(name)?, len.unwrap_or(limits::CONTENT));
        let mut plain = Verifier::new(unpacked(&mut packed).map_err(failed)?, budget.bytes);
        let changes = layer::read(&mut plain, spool, &mut budget.entries).map_err(|e| self.refused(e))?;
        let content = plain.finish().map_err(failed)?;
        check(self.blob, &packed.finish().map_err(failed)?)?;
        if let Some(what) = content.differs(None, self.unpacked) {
            return Err(ImageError::Damaged { name: name.clone(), what });
        }
        budget.bytes -= content.len;
        Ok(changes)
    }
}
