//! What the rules want to know of a file, collected in one walk over its syntax.

use proc_macro2::{Span, TokenStream, TokenTree};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

use super::source::{Source, is_for_tests};

/// A path as it is written, with `crate`, `self` and `super` still in it.
#[derive(Debug, Clone)]
pub struct Mention {
    pub segments: Vec<String>,
    /// Modules in this file around it, outermost first.
    pub inside: Vec<String>,
    pub line: usize,
}

/// `unsafe` in some form.
#[derive(Debug, Clone, Copy)]
pub struct Unsafe {
    pub line: usize,
    /// Statements, where it is a block.
    pub statements: Option<usize>,
    /// Whether it must say why it is sound: blocks and implementations do, functions leave that to their callers.
    pub needs_reason: bool,
}

/// Something with a line.
#[derive(Debug, Clone)]
pub struct At<T> {
    pub line: usize,
    pub what: T,
}

/// Everything worth knowing.
#[derive(Debug, Default)]
pub struct Facts {
    pub mentions: Vec<Mention>,
    pub unsafes: Vec<Unsafe>,
    /// `unwrap`, `panic!`, `let _ =` and the like, outside tests.
    pub panics: Vec<At<String>>,
    /// Name and length in lines.
    pub functions: Vec<At<(String, usize)>>,
}

/// Walks over a file.
pub fn collect(source: &Source) -> Facts {
    let mut walk =
        Walk { facts: Facts::default(), inside: Vec::new(), test_depth: usize::from(source.is_test) };
    walk.visit_file(&source.syntax);
    walk.facts
}

struct Walk {
    facts: Facts,
    inside: Vec<String>,
    test_depth: usize,
}

const PANICKING_METHODS: [&str; 4] = ["unwrap", "expect", "unwrap_err", "expect_err"];
const PANICKING_MACROS: [&str; 4] = ["panic", "todo", "unimplemented", "unreachable"];

impl Walk {
    fn mention(&mut self, segments: Vec<String>, span: Span) {
        self.facts.mentions.push(Mention { segments, inside: self.inside.clone(), line: line(span) });
    }

    fn panic(&mut self, what: &str, span: Span) {
        if self.test_depth == 0 {
            self.facts.panics.push(At { line: line(span), what: what.to_owned() });
        }
    }

    fn function(&mut self, name: &syn::Ident, block: &syn::Block) {
        let lines = block.span().end().line.saturating_sub(block.span().start().line) + 1;
        self.facts.functions.push(At { line: line(name.span()), what: (name.to_string(), lines) });
    }

    fn unsafe_item(&mut self, token: Option<&syn::token::Unsafe>, needs_reason: bool) {
        if let Some(token) = token {
            self.facts.unsafes.push(Unsafe { line: line(token.span), statements: None, needs_reason });
        }
    }

    /// Walks over an item, remembering whether only tests see it.
    fn item(&mut self, attributes: &[syn::Attribute], walk: impl FnOnce(&mut Self)) {
        let depth = self.test_depth;
        self.test_depth += usize::from(is_for_tests(attributes));
        walk(self);
        self.test_depth = depth;
    }

    /// Flattens `a::{b, c::d}` into `a::b` and `a::c::d`.
    fn use_tree(&mut self, tree: &syn::UseTree, before: &[String]) {
        let with = |name: &syn::Ident| [before, &[name.to_string()]].concat();
        match tree {
            syn::UseTree::Path(path) => self.use_tree(&path.tree, &with(&path.ident)),
            syn::UseTree::Name(name) => self.mention(with(&name.ident), name.ident.span()),
            syn::UseTree::Rename(rename) => self.mention(with(&rename.ident), rename.ident.span()),
            syn::UseTree::Glob(glob) => self.mention(before.to_vec(), glob.span()),
            syn::UseTree::Group(group) => group.items.iter().for_each(|tree| self.use_tree(tree, before)),
        }
    }

    /// Macros are not parsed: in their tokens, names with `::` between them are paths.
    fn tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<(String, Span)> = Vec::new();
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
                TokenTree::Ident(name) => {
                    if colons != 2 {
                        self.end_of_path(&mut path);
                    }
                    if PANICKING_METHODS.contains(&name.to_string().as_str()) && colons == 0 {
                        self.panic(&name.to_string(), name.span());
                    }
                    colons = 0;
                    path.push((name.to_string(), name.span()));
                }
                TokenTree::Group(group) => {
                    self.end_of_path(&mut path);
                    self.tokens(group.stream());
                }
                _ => {
                    self.end_of_path(&mut path);
                    colons = 0;
                }
            }
        }
        self.end_of_path(&mut path);
    }

    fn end_of_path(&mut self, path: &mut Vec<(String, Span)>) {
        if let (Some((_, span)), true) = (path.first(), path.len() > 1) {
            let span = *span;
            self.mention(path.iter().map(|(name, _)| name.clone()).collect(), span);
        }
        path.clear();
    }
}

impl<'ast> Visit<'ast> for Walk {
    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        self.item(&module.attrs, |walk| {
            walk.inside.push(module.ident.to_string());
            visit::visit_item_mod(walk, module);
            walk.inside.pop();
        });
    }

    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        self.item(&function.attrs, |walk| {
            walk.function(&function.sig.ident, &function.block);
            visit::visit_item_fn(walk, function);
        });
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        self.item(&function.attrs, |walk| {
            walk.function(&function.sig.ident, &function.block);
            visit::visit_impl_item_fn(walk, function);
        });
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        self.item(&item.attrs, |walk| {
            walk.unsafe_item(item.unsafety.as_ref(), true);
            visit::visit_item_impl(walk, item);
        });
    }

    fn visit_item_trait(&mut self, item: &'ast syn::ItemTrait) {
        self.unsafe_item(item.unsafety.as_ref(), false);
        visit::visit_item_trait(self, item);
    }

    fn visit_signature(&mut self, signature: &'ast syn::Signature) {
        self.unsafe_item(signature.unsafety.as_ref(), false);
        visit::visit_signature(self, signature);
    }

    fn visit_expr_unsafe(&mut self, block: &'ast syn::ExprUnsafe) {
        let statements = Some(block.block.stmts.len());
        self.facts.unsafes.push(Unsafe {
            line: line(block.unsafe_token.span),
            statements,
            needs_reason: true,
        });
        visit::visit_expr_unsafe(self, block);
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.use_tree(&item.tree, &[]);
    }

    fn visit_item_extern_crate(&mut self, item: &'ast syn::ItemExternCrate) {
        self.mention(vec![item.ident.to_string()], item.ident.span());
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        if path.segments.len() > 1 {
            self.mention(
                path.segments.iter().map(|segment| segment.ident.to_string()).collect(),
                path.span(),
            );
        }
        visit::visit_path(self, path);
    }

    fn visit_expr_method_call(&mut self, call: &'ast syn::ExprMethodCall) {
        let name = call.method.to_string();
        // A method of the same name with other arguments is somebody's own.
        let arguments = usize::from(name.starts_with("expect"));
        if PANICKING_METHODS.contains(&name.as_str()) && call.args.len() == arguments {
            self.panic(&name, call.method.span());
        }
        visit::visit_expr_method_call(self, call);
    }

    fn visit_macro(&mut self, item: &'ast syn::Macro) {
        let name = item.path.segments.last().map(|segment| segment.ident.to_string()).unwrap_or_default();
        if PANICKING_MACROS.contains(&name.as_str()) {
            self.panic(&format!("{name}!"), item.path.span());
        }
        self.tokens(item.tokens.clone());
        visit::visit_macro(self, item);
    }

    fn visit_local(&mut self, local: &'ast syn::Local) {
        if is_wild(&local.pat) && local.init.is_some() {
            self.panic("let _ =", local.let_token.span);
        }
        visit::visit_local(self, local);
    }
}

fn is_wild(pattern: &syn::Pat) -> bool {
    match pattern {
        syn::Pat::Wild(_) => true,
        syn::Pat::Type(typed) => is_wild(&typed.pat),
        _ => false,
    }
}

fn line(span: Span) -> usize {
    span.start().line
}
